"""Decode attention over a long contiguous cache beside what a user would pick instead, on one GPU.

One new token of one sequence, 32 query and 8 key heads. First the oracles, which share no code with ours: the formula in
f64 by PyTorch at every length that is timed, with queries so large that a few keys decide, and FlashInfer's rotation of
keys as they are read at a short one. Then the times, in rounds in which each has its turn: ours and the peers of this
process by CUDA events, FlashAttention-3 in a process of its own by the clock, launches in a row. Medians of the rounds.

    python3 benches/peers/decode.py --library target/release/liblongrope.so

`contiguous` reads keys that are rotated already, `rotate_on_read` rotates them. Of the peers FlashInfer alone does, by f32
angles that are off at far positions: how far its outputs are from ours is printed (`seen: ...`) and fails nothing.

Needs PyTorch; FlashInfer and FlashAttention-3 (the KV-cache entry of flash-attn3-jax) are measured where they are
installed. The latter's output is not compared: its inputs are its own.
"""

import math
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from attention import HALF_UNIT, launches, torch_peer
from longrope import Longrope
from torch.nn.attention import SDPBackend
from turns import Rows, agree, arguments, medians, not_measured, rounds
from worker import Worker

ROUNDS = 9
LENGTHS = (131072, 1048576, 2097152)
OPS = ("contiguous", "rotate_on_read")
DTYPE = torch.bfloat16
# Logits are normal with this deviation: of a million keys some ten have the weight, and the output does not average out.
# With plain normal queries it would be smaller than what rounding may add, and a wrong one would pass.
SHARP = 4.0
# How far a logit may be off for a key that was rotated in f32, and then rounded the other way than in f64: 3e-6 of error
# are a thousandth of a unit, so this happens to one element of a thousand, by 2^-8 of it.
ROUNDED_OTHERWISE = 2.0**-6
# The same for keys and a query that FlashInfer does not round at all: 256 roundings of half a unit, of deviation 5e-3
# together, and its angles at short lengths, off by 2.5e-3 rad at most.
NOT_ROUNDED = 2.0**-5


@dataclass(frozen=True)
class Case:
    op: str
    length: int
    heads: int = 32
    key_heads: int = 8
    dim: int = 128

    def shape(self):
        return f"b1 q1 s{self.length} h{self.heads}/{self.key_heads} d{self.dim} Bf16"

    def name(self):
        return f"{self.op}, {self.shape()}"

    def rotates(self):
        return self.op == "rotate_on_read"

    def bytes(self):
        """Of keys and values."""
        return 2 * self.length * self.key_heads * self.dim * DTYPE.itemsize

    def inputs(self):
        """q, [1, 1, heads, dim], and k and v, [1, length, key_heads, dim], in which a head's tokens lie in a row."""
        q = torch.randn(1, 1, self.heads, self.dim, device="cuda")
        sizes = (1, self.key_heads, self.length, self.dim)
        k, v = (torch.randn(sizes, device="cuda", dtype=DTYPE).transpose(1, 2) for _ in range(2))
        return (SHARP * q).to(DTYPE), k, v

    def steps(self):
        """Radians a token of each pair, in f32 as all are given them."""
        return (1e4 ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)).float()


# --- ours, and the formula ---


class Ours:
    """Our decode of a case; `out` and `lse` are what `checked` found."""

    def __init__(self, library, case, q, k, v):
        self.q, rotary = q, None
        if case.rotates():
            rotary = library.factor_sets(case.steps().tolist())
            # Queries come rotated. FlashInfer rotates its own.
            self.q = turned(q.double(), torch.tensor([[case.length - 1]]), case.steps()).to(DTYPE)
        self.out = torch.full_like(q, float("nan"))
        self.lse = torch.full(q.shape[:3], float("nan"), device="cuda")
        self.checked = library.decode(self.q, k, v, self.out, self.lse, rotary)
        # Without what no peer is asked for.
        self.timed = library.decode(self.q, k, v, torch.empty_like(q), None, rotary)


def turned(x, positions, steps):
    """[..., dim] in f64 rotated by positions, [..., 1]."""
    angles = positions.to(x) * steps.to(x)
    cos, sin = angles.cos(), angles.sin()
    one, two = x.chunk(2, -1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)


def formula(q, k, v, steps=None):
    """Output, sum of weights and sizes of values, and log-sum-exp of one query, [heads, ...], in f64. With `steps` keys
    are rotated, and rounded to the type of a cache."""
    found, positions = [], torch.arange(k.shape[1])[:, None]
    for head, queries in enumerate(q[0, 0].double().chunk(k.shape[2])):
        keys, values = k[0, :, head].double(), v[0, :, head].double()
        if steps is not None:
            keys = turned(keys, positions, steps).to(DTYPE).double()
        logits = queries @ keys.T / math.sqrt(q.shape[-1])
        lse = logits.logsumexp(-1)
        weights = (logits - lse[:, None]).exp()
        found.append((weights @ values, weights @ values.abs(), lse))
    return [torch.cat(part) for part in zip(*found)]


def off_bound(found, expected, spread, roundings, slack=0.0):
    """The largest difference of two outputs, [heads, dim], in units of what they may differ by: so many roundings of weights
    and outputs, of half a unit of sum(p |v|) each, and logits that are off by `slack`."""
    bound = (roundings * HALF_UNIT[DTYPE] + 2 * slack) * spread + 1e-6
    return worst((found.double() - expected.double()) / bound)


def worst(differences):
    return differences.abs().nan_to_num(torch.inf).max().item()


def ours_agrees(case, ours, k, v):
    """Sum of weights and sizes of values, by which peers are compared."""
    ours.checked()
    slack = ROUNDED_OTHERWISE if case.rotates() else 0.0
    expected, spread, lse = formula(ours.q, k, v, case.steps() if case.rotates() else None)
    off = off_bound(ours.out[0, 0], expected, spread, 2, slack)
    # Sums in f32 of products in f32: 1e-4.
    agree(f"the formula in f64, {case.name()}", max(off, worst((ours.lse[0, 0] - lse) / (1e-4 + slack))))
    return spread


# --- peers ---


def flashinfer_peer(q, k, v, **options):
    import flashinfer

    # [heads, dim] and [key_heads, length, dim].
    q, k, v = q[0, 0], k[0].transpose(0, 1), v[0].transpose(0, 1)
    return lambda: flashinfer.single_decode_with_kv_cache(q, k, v, kv_layout="HND", **options)


def flashinfer_peers(case, q, k, v):
    """Names, and functions that make a function whose result is the output."""
    options = {"pos_encoding_mode": "ROPE_LLAMA"} if case.rotates() else {}
    name = "FlashInfer, fp32 angles" if case.rotates() else "FlashInfer"
    yield name, partial(flashinfer_peer, q, k, v, **options)
    # Another kernel of theirs, that for prefills.
    yield f"{name}, tensor cores", partial(flashinfer_peer, q, k, v, use_tensor_cores=True, **options)


def peers(case, q, k, v):
    """The same of all that run in this process."""
    if not case.rotates():
        yield "cuDNN", partial(torch_peer, SDPBackend.CUDNN_ATTENTION, q, k, v, False)
        yield "FlashAttention-2", partial(torch_peer, SDPBackend.FLASH_ATTENTION, q, k, v, False)
    yield from flashinfer_peers(case, q, k, v)


def flashinfer_agrees(library):
    case = Case("rotate_on_read", 1000)
    q, k, v = case.inputs()
    ours = Ours(library, case, q, k, v)
    spread = ours_agrees(case, ours, k, v)
    for name, make in flashinfer_peers(case, q, k, v):
        off = off_bound(ours.out[0, 0], make()().view(case.heads, case.dim), spread, 4, NOT_ROUNDED)
        agree(f"{name}, {case.name()}", off)


def ready(case, q, k, v, ours, spread):
    """The peers that run here: names, functions, and how many launches make a turn."""
    for name, make in peers(case, q, k, v):
        try:
            work = make()
            off = off_bound(work().reshape(case.heads, case.dim), ours.out[0, 0], spread, 4)
            [[time]] = rounds([work], 1, [1])
        except Exception as error:  # whatever keeps it from running here
            not_measured(f"{name}, {case.name()}", error)
            continue
        print(f"seen: {name}, {case.name()}: off ours by {off:.3g} of the bound", flush=True)
        if off > 1 and not case.rotates():
            not_measured(f"{name}, {case.name()}", f"its output is {off:.3g} times the bound off ours")
        else:
            yield name, work, launches(time)


# --- times ---


def open_in(worker, case):
    """How many launches make the worker's turn; None if it can't run the case."""
    if worker is None or case.rotates():
        return None
    try:
        return launches(worker.open(asdict(case)))
    except Exception as error:
        not_measured(f"FlashAttention-3, {case.name()}", error)
        return None


def measure(worker, case, ours, here):
    """Median milliseconds of each, by name; ours is the first."""
    [[time]] = rounds([ours.timed], 1, [1])
    names, functions, each = zip(("ours", ours.timed, launches(time)), *here)
    # What the formula took is the worker's to have.
    torch.cuda.empty_cache()
    there = open_in(worker, case)
    table, theirs = [], []
    rounds(functions, 1, each)
    for _ in range(ROUNDS):
        table += rounds(functions, 1, each)
        # `rounds` has waited for the GPU, so that it is the worker's alone.
        if there:
            theirs.append(worker.turn(there))
    found = dict(zip(names, medians(table)))
    if there:
        worker.close()
        found["FlashAttention-3"] = statistics.median(theirs)
    return found


def start_worker():
    program = Path(__file__).with_name("flash_attention3_decode.py")
    try:
        # Else JAX takes most of the memory at once.
        return Worker(program, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    except Exception as error:
        not_measured("FlashAttention-3", error)
        return None


def times(library, worker):
    rows = Rows("decode")
    for length in LENGTHS:
        q, k, v = Case(OPS[0], length).inputs()
        for case in (Case(op, length) for op in OPS):
            ours = Ours(library, case, q, k, v)
            spread = ours_agrees(case, ours, k, v)
            here = list(ready(case, q, k, v, ours, spread))
            found = measure(worker, case, ours, here)
            our_time = found.pop("ours")
            for name, time in found.items():
                rows.row(case.op, case.shape(), "GB/s", lambda t: case.bytes() / t / 1e6, our_time, name, time)
        del q, k, v, ours, here
        torch.cuda.empty_cache()


def prepare(worker):
    """Compiles what FlashInfer compiles at its first use, all at the same time, and what JAX does."""

    def first_use(peer):
        name, make = peer
        try:
            make()()
        except Exception as error:
            not_measured(name, error)

    cases = [Case(op, 1000) for op in OPS]
    inputs = cases[0].inputs()
    with ThreadPoolExecutor() as pool:
        list(pool.map(first_use, (peer for case in cases for peer in flashinfer_peers(case, *inputs))))
    torch.cuda.synchronize()
    open_in(worker, cases[0])


def main():
    options = arguments(__doc__.splitlines()[0])
    torch.zeros(1, device="cuda")  # makes PyTorch's context current
    torch.manual_seed(1)
    worker = start_worker()
    try:
        if options.prepare:
            return prepare(worker)
        library = Longrope(options.library)
        try:
            flashinfer_agrees(library)
        except Exception as error:  # not installed, or not compiled; that it disagrees is no Exception but the end
            not_measured("FlashInfer as an oracle", error)
        times(library, worker)
    finally:
        if worker:
            worker.stop()


if __name__ == "__main__":
    main()
