"""The attention kernels' forward pass beside what a user would pick instead, on one GPU.

First the oracle, which shares no code with ours: PyTorch's FlashAttention-2 on small shapes. Then the times, in five
rounds in which each has its turn: ours and PyTorch's peer in this process by CUDA events, FlashAttention-3 in a process of
its own by the clock, launches in a row. Medians of the rounds.

    python3 benches/peers/attention.py --library target/release/liblongrope.so

With --portable ours is the portable kernel, beside the best of its kind, which is FlashAttention-2; without, it is what
the GPU runs, beside cuDNN and FlashAttention-3.

Needs PyTorch; FlashAttention-3 is measured where flash-attn3-jax is installed.
"""

import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from longrope import Longrope
from torch.nn.attention import SDPBackend, sdpa_kernel
from turns import Rows, agree, arguments, medians, not_measured, rounds
from worker import Worker

ROUNDS = 5
# How long a turn takes at least, in milliseconds: launches in a row, so that what comes before the first is small.
TURN = 30.0
# How long an output may be off for each rounding of its type: half a unit in the last place, relative.
HALF_UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# How much further from f64 than the peers ours may be: roundings of the output fall as they may.
SLACK = 1.05


@dataclass(frozen=True)
class Case:
    batch: int
    length: int
    heads: int
    key_heads: int
    dim: int
    causal: bool

    def shape(self):
        mask = "causal" if self.causal else "full"
        return f"b{self.batch} s{self.length} h{self.heads}/{self.key_heads} d{self.dim} {mask} Bf16"

    def operations(self):
        """Two products of two operations a logit; of a causal mask half of them."""
        return 4 * self.batch * self.heads * self.length**2 * self.dim / (2 if self.causal else 1)

    def inputs(self, dtype=torch.bfloat16, key_length=None):
        """q, k, v: [batch, length, heads, dim]."""
        sizes = ((self.length, self.heads), *((key_length or self.length, self.key_heads),) * 2)
        return [torch.randn(self.batch, s, h, self.dim, device="cuda", dtype=dtype) for s, h in sizes]


CASES = [
    Case(8, 2048, 16, 16, 128, True),
    Case(1, 16384, 16, 16, 128, True),
    Case(1, 16384, 16, 16, 128, False),
    Case(1, 16384, 32, 8, 128, True),
    Case(1, 131072, 8, 2, 128, True),
    Case(1, 1048576, 2, 1, 128, True),
    Case(1, 16384, 32, 32, 64, True),
    Case(1, 65536, 8, 8, 64, True),
    Case(1, 16384, 8, 8, 256, True),
    Case(1, 16384, 16, 16, 96, True),
]


# --- the oracle ---


def flash_attention2(q, k, v, causal):
    """Output, as q, and log-sum-exp, [batch, length, heads], of PyTorch's kernel; each query head has its own keys."""
    group = q.shape[2] // k.shape[2]
    wide = [x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v)]
    found = torch.ops.aten._scaled_dot_product_flash_attention(q.transpose(1, 2), *wide, 0.0, causal, False)
    return found[0].transpose(1, 2), found[1].transpose(1, 2)


def off_bound(ours, theirs, spread, our_lse, their_lse):
    """The largest difference of two attentions in units of what they may differ by.

    Weights p are rounded to the type before the product with V, and the output after it: on each side an error of at
    most half a unit of sum(p |v|), which is `spread`, and of the output, which is no larger. The log-sum-exp is f32 on
    both sides, of logits that are sums of up to 256 products: 1e-4.
    """
    bound = 4 * HALF_UNIT[ours.dtype] * spread.double() + 1e-6
    output = (ours.double() - theirs.double()).abs() / bound
    lse = (our_lse.double() - their_lse.double()).abs() / 1e-4
    return max(x.nan_to_num(torch.inf).max().item() for x in (output, lse))


def ours(library, q, k, v, out, lse=None, causal=True, portable=False):
    """Our attention. A kernel for one GPU leaves scales below zero to the portable one, which flips its queries once a block:
    -q by -scale asks it for the same."""
    if not portable:
        return library.attention(q, k, v, out, lse, causal)
    return library.attention(-q, k, v, out, lse, causal, -1 / math.sqrt(q.shape[-1]))


def flash_attention2_agrees(library, portable):
    worst = 0.0
    for dtype in HALF_UNIT:
        for heads, key_heads in ((4, 4), (9, 3)):
            for dim in (64, 96, 128, 256):
                # Causal as PyTorch has it: queries and keys begin together.
                for length, key_length, causal in ((1, 1, True), (129, 129, True), (333, 333, True), (70, 257, False)):
                    q, k, v = Case(2, length, heads, key_heads, dim, causal).inputs(dtype, key_length)
                    out = torch.full_like(q, float("nan"))
                    lse = torch.full(q.shape[:3], float("nan"), device="cuda")
                    ours(library, q, k, v, out, lse, causal, portable)()
                    theirs, their_lse = flash_attention2(q, k, v, causal)
                    spread, _ = flash_attention2(q, k, v.abs(), causal)
                    worst = max(worst, off_bound(out, theirs, spread, lse, their_lse))
    agree("PyTorch's FlashAttention-2, f16 and bf16, with the log-sum-exp", worst)


def in_f64(q, k, v, causal):
    """Attention as it is defined; a causal mask as PyTorch has it."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
    logits = torch.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(q.shape[-1])
    if causal:
        logits = logits + torch.full(logits.shape[-2:], float("-inf"), device="cuda", dtype=torch.float64).triu(1)
    return torch.einsum("bhlm,bmhd->blhd", logits.softmax(-1), v)


def errors(found, exact):
    """By Frobenius's norm, relative, and the largest of an element."""
    away = found.double() - exact
    return (away.norm() / exact.norm()).item(), away.abs().max().item()


def is_no_further_from_f64(library, portable):
    """Than the nearest of PyTorch's kernels, by both measures. Of the largest error of some ten thousand elements, which is
    one element's chance, twice as much."""
    worst = 0.0
    backends = [SDPBackend.FLASH_ATTENTION] + ([] if portable else [SDPBackend.CUDNN_ATTENTION])
    for dtype in HALF_UNIT:
        for dim in (64, 96, 128, 256):
            for length, causal in ((333, True), (2048, True), (1000, False)):
                q, k, v = Case(1, length, 4, 4, dim, causal).inputs(dtype)
                out = torch.empty_like(q)
                ours(library, q, k, v, out, causal=causal, portable=portable)()
                exact = in_f64(q, k, v, causal)
                theirs = []
                for backend in backends:
                    try:
                        theirs.append(errors(torch_peer(backend, q, k, v, causal)().transpose(1, 2), exact))
                    except RuntimeError:  # not every backend takes every head dimension
                        continue
                norm, largest = map(min, zip(*theirs))
                mine = errors(out, exact)
                worst = max(worst, mine[0] / (SLACK * norm), mine[1] / (2 * largest))
    agree("no further from f64 than PyTorch's FlashAttention-2 and cuDNN", worst)


# --- times ---


def torch_peer(backend, q, k, v, causal):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]

    def work():
        with torch.no_grad(), sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    return work


def works(library, case, portable):
    """Ours first, then the peer in this process, as `ready` gives them."""
    q, k, v = case.inputs()
    out = torch.empty_like(q)
    makers = {"ours": lambda: ours(library, q, k, v, out, causal=case.causal, portable=portable)}
    if portable:
        makers["FlashAttention-2"] = lambda: torch_peer(SDPBackend.FLASH_ATTENTION, q, k, v, case.causal)
    else:
        makers["cuDNN"] = lambda: torch_peer(SDPBackend.CUDNN_ATTENTION, q, k, v, case.causal)
    return ready(makers, case)


def ready(makers, case):
    """Of those that run here: names, functions, and how many launches make a turn."""
    for name, make in makers.items():
        try:
            work = make()
            work()
            [[time]] = rounds([work], 1, [1])
        except Exception as error:  # whatever keeps it from running here
            not_measured(f"{name}, {case.shape()}", error)
        else:
            yield name, work, launches(time)


def launches(time):
    return max(1, math.ceil(TURN / time))


def open_in(worker, case, backward):
    """How many launches make the worker's turn; None if it can't run the case."""
    if worker is None or case.dim != 128:
        return None
    try:
        return launches(worker.open({**asdict(case), "backward": backward}))
    except Exception as error:
        not_measured(f"FlashAttention-3, {case.shape()}", error)
        return None


def measure(worker, case, here, count, backward=False):
    """Median milliseconds of each that ran, by name; `here`: those in this process, ours first."""
    here = list(here)
    if not here or here[0][0] != "ours":
        return {}
    names, functions, each = zip(*here)
    there = open_in(worker, case, backward)
    table, theirs = [], []
    for _ in range(count):
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
    program = Path(__file__).with_name("flash_attention3.py")
    try:
        # Else JAX takes most of the memory at once.
        return Worker(program, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    except Exception as error:
        not_measured("FlashAttention-3", error)
        return None


def times(library, worker, cases, count, portable):
    rows = Rows("attention") if count > 1 else None
    for case in cases:
        found = measure(worker, case, works(library, case, portable), count)
        torch.cuda.empty_cache()
        our_time = found.pop("ours", None)
        for name, time in found.items() if rows else ():
            rows.row("forward", case.shape(), "TFLOP/s", lambda t: case.operations() / t / 1e9, our_time, name, time)


def main():
    options = arguments(__doc__.splitlines()[0], ("--portable", "measure the kernel that every GPU runs"))
    portable = options.portable
    torch.zeros(1, device="cuda")  # makes PyTorch's context current
    torch.manual_seed(1)
    library = Longrope(options.library)
    worker = None if portable else start_worker()
    try:
        if options.prepare:
            return times(library, worker, CASES[:1], 1, portable)
        flash_attention2_agrees(library, portable)
        is_no_further_from_f64(library, portable)
        times(library, worker, CASES, ROUNDS, portable)
    finally:
        if worker:
            worker.stop()


if __name__ == "__main__":
    main()
