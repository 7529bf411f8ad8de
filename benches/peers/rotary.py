"""The rotary kernel beside what a user would pick instead, in one process on one GPU.

First the oracles, which share no code with ours: transformers' Phi-3 rotary in f32 against our parity mode, and
FlashInfer's kernels in f16 against both modes. Then the times: ours and each peer in turn, medians of CUDA events.

    python3 benches/peers/rotary.py --library target/release/liblongrope.so

Needs PyTorch and transformers; Liger and FlashInfer are measured where they are installed.
"""

import torch
from longrope import PARITY, Longrope
from turns import Rows, agree, alternate, arguments, not_measured
from transformers import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding, apply_rotary_pos_emb

DIM = 128
SHAPES = ((131072, (32, 8)), (65536, (32, 32)))


def frequencies(dim, theta=1e4):
    """[dim / 2] in f64, on the CPU."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


# --- oracles ---


def transformers_agrees(library):
    """LongRoPE's factors, short and long, to position 131071. The bound is 2e-6: f32 arithmetic on both sides."""
    heads, dim, length = 4, 96, 64
    factors = [1.0 + 63.0 * (i / 47) ** 3 for i in range(48)]
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": factors}
    worst = 0.0
    for total in (4096, 131072):
        config = Phi3Config(
            hidden_size=heads * dim,
            num_attention_heads=heads,
            num_key_value_heads=2,
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            rope_scaling={"type": "longrope", **scaling},
        )
        embedding = Phi3RotaryEmbedding(config).cuda()
        q = torch.randn(1, heads, length, dim, device="cuda")
        k = torch.randn(1, 2, length, dim, device="cuda")
        positions = torch.arange(total - length, total, device="cuda")[None]
        expected = apply_rotary_pos_emb(q, k, *embedding(q, positions))
        sets = library.factor_sets(embedding.inv_freq.tolist(), float(embedding.attention_scaling), PARITY)
        ours = [torch.full_like(q, float("nan")), torch.full_like(k, float("nan"))]
        pairs = [(x.transpose(1, 2), y.transpose(1, 2)) for x, y in zip((q, k), ours)]
        library.rotary(sets, pairs, position_offset=total - length)()
        for found, exact in zip(ours, expected):
            worst = max(worst, (found - exact).abs().nan_to_num(torch.inf).max().item() / 2e-6)
    agree("transformers' Phi-3 rotary in f32, parity mode, to position 131071", worst)


def off_bound(found, expected, x, pairs, interleaved, slack):
    """The largest difference of two f16 rotations of x, [length, heads, dim], in units of what they may differ by.

    Each side rounds a value of at most hypot(x1, x2) to f16, which is half of 2^-10 of it (or of 2^-24) a side. What
    the angles and f32 add, relative to hypot, is `slack`, [length, 1, pairs] or a number. What does not turn is equal.
    """

    def halves(y):
        turned = y[..., : 2 * pairs].float()
        return (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)

    size = torch.hypot(*halves(x))
    bound = size * (2.0**-10 + slack) + 2.0**-24
    parts = zip(halves(found), halves(expected))
    worst = max(((a - b).abs() / bound).nan_to_num(torch.inf).max().item() for a, b in parts)
    return worst if torch.equal(found[..., 2 * pairs :], x[..., 2 * pairs :]) else torch.inf


def flashinfer_agrees(library):
    import flashinfer

    def inputs(length):
        return [torch.randn(length, heads, DIM, device="cuda", dtype=torch.float16) for heads in (8, 2)]

    def ours(sets, tensors, **where):
        outputs = [torch.full_like(x, float("nan")) for x in tensors]
        library.rotary(sets, [(x[None], y[None]) for x, y in zip(tensors, outputs)], **where)()
        return outputs

    # A table of exact angles: far positions and negative ones, both pairings, partial rotary.
    positions = [sign * (2**bit + step) for bit in range(0, 31, 2) for step in (0, 1, 7) for sign in (1, -1)]
    where = torch.tensor(positions, dtype=torch.int64)
    factors = torch.linspace(1, 8, 64, dtype=torch.float64)
    worst = 0.0
    for interleaved in (False, True):
        for pairs in (64, 32):
            # What our library is given, in f32: the definition of the angle.
            given = (frequencies(2 * pairs) / factors[:pairs]).float()
            # Exact to 2^-53 of an angle of 2^31: 2.4e-7 rad.
            angles = where.double()[:, None] * given.double()
            table = torch.cat((angles.cos(), angles.sin()), -1).float().cuda()
            tensors = inputs(len(positions))
            rows = torch.arange(len(positions), device="cuda")
            flat = [x.reshape(len(positions), -1) for x in tensors]
            theirs = flashinfer.apply_rope_with_cos_sin_cache(rows, *flat, DIM, table, not interleaved)
            found = ours(library.factor_sets(given.tolist()), tensors, positions=where.cuda(), interleaved=interleaved)
            for x, a, b in zip(tensors, found, theirs):
                # 1e-6 as our kernel promises, as much for their f32.
                worst = max(worst, off_bound(a, b.view_as(x), x, pairs, interleaved, 2e-6))
    agree("FlashInfer with a table of exact angles, f16, to positions +-2^30", worst)

    # Their own angles: a frequency by __powf (a logarithm of 13.3 off by up to 2 ulp, the product with it, an
    # exponential: 1.9e-6 of the angle), position times frequency and its reduction in f32 (3e-7 of the angle; ours
    # 6e-8), __sincosf (2^-21.2 within a turn).
    worst = 0.0
    for first in (0, 960):
        length = 64
        given = frequencies(DIM).float()
        tensors = inputs(length)
        indptr = torch.tensor([0, length], dtype=torch.int32, device="cuda")
        offsets = torch.tensor([first], dtype=torch.int32, device="cuda")
        theirs = flashinfer.apply_rope(*tensors, indptr, offsets)
        found = ours(library.factor_sets(given.tolist(), 1.0, PARITY), tensors, position_offset=first)
        angles = (torch.arange(first, first + length)[:, None, None] * given).cuda()
        for x, a, b in zip(tensors, found, theirs):
            worst = max(worst, off_bound(a, b, x, DIM // 2, False, 2.5e-6 * angles + 2e-6))
    agree("FlashInfer's fp32 angles, f16, parity mode, to position 1023", worst)


# --- times ---


def peers(q, k):
    """Names, and functions that make a function that rotates q and k, [1, length, heads, DIM], or raise why not."""
    length = q.shape[1]
    steps = frequencies(DIM).float().cuda()
    positions = torch.arange(length, device="cuda")
    angles = torch.outer(positions.float(), steps)
    wide = torch.cat((angles, angles), -1)
    cos, sin = wide.cos().to(q.dtype)[None], wide.sin().to(q.dtype)[None]
    q_heads, k_heads = q.transpose(1, 2), k.transpose(1, 2)

    def computed():
        angles = torch.outer(positions.float(), steps)
        wide = torch.cat((angles, angles), -1)
        return apply_rotary_pos_emb(q_heads, k_heads, wide.cos().to(q.dtype)[None], wide.sin().to(q.dtype)[None])

    def compiled(function):
        return torch.compile(function, dynamic=False)

    def liger():
        from liger_kernel.ops.rope import LigerRopeFunction

        return lambda: LigerRopeFunction.apply(q_heads, k_heads, cos, sin)

    def flashinfer_angles():
        import flashinfer

        indptr = torch.tensor([0, length], dtype=torch.int32, device="cuda")
        offsets = torch.zeros(1, dtype=torch.int32, device="cuda")
        return lambda: flashinfer.apply_rope_inplace(q[0], k[0], indptr, offsets)

    def flashinfer_table():
        import flashinfer

        table = torch.cat((angles.cos(), angles.sin()), -1)
        flat = [x.view(length, -1) for x in (q, k)]
        return lambda: flashinfer.apply_rope_with_cos_sin_cache_inplace(positions, *flat, DIM, table)

    yield "PyTorch eager, angles computed", lambda: computed
    yield "PyTorch compiled, angles computed", lambda: compiled(computed)
    yield "transformers eager, bf16 table given", lambda: lambda: apply_rotary_pos_emb(q_heads, k_heads, cos, sin)
    rotate = compiled(apply_rotary_pos_emb)
    yield "transformers compiled, bf16 table given", lambda: lambda: rotate(q_heads, k_heads, cos, sin)
    yield "Liger, bf16 table given", liger
    yield "FlashInfer, fp32 angles", flashinfer_angles
    yield "FlashInfer, fp32 table given", flashinfer_table


def times(library, prepare):
    rows = None if prepare else Rows("rotary")
    for length, heads in SHAPES:
        q, k = (torch.randn(1, length, h, DIM, device="cuda", dtype=torch.bfloat16) for h in heads)
        outputs = [torch.empty_like(q), torch.empty_like(k)]
        ours = library.rotary(library.factor_sets(frequencies(DIM).tolist()), list(zip((q, k), outputs)))
        moved = 2 * (q.numel() + k.numel()) * q.element_size() / 1e6
        shape = f"b1 s{length} h{heads[0]}/{heads[1]} d{DIM} Bf16"
        for name, make in peers(q, k):
            try:
                peer = make()
                peer()
                torch.cuda.synchronize()
            except Exception as error:  # whatever keeps another library from running here
                not_measured(f"{name}, {shape}", error)
                continue
            if not prepare:
                our_time, peer_time = alternate(ours, peer)
                rows.row("out_of_place", shape, "GB/s", lambda time: moved / time, our_time, name, peer_time)


def main():
    options = arguments(__doc__.splitlines()[0])
    torch.zeros(1, device="cuda")  # makes PyTorch's context current
    torch.manual_seed(1)
    library = Longrope(options.library)
    if not options.prepare:
        transformers_agrees(library)
        try:
            flashinfer_agrees(library)
        except Exception as error:  # not installed, or not compiled; that it disagrees is no Exception but the end
            not_measured("FlashInfer as an oracle", error)
    times(library, options.prepare)


if __name__ == "__main__":
    main()
