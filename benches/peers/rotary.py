"""The rotary kernel beside what a user would pick instead, in one process on one GPU.

First an oracle that shares no code with ours: transformers' Phi-3 rotary in f32, against our parity mode. Then the times:
ours and each peer in turn, repeat by repeat, medians of CUDA events, at the shape of the goals. Peers: transformers' own
rotary (eager, and through torch.compile), Liger's Triton kernel and FlashInfer where they are installed.

    python benches/peers/rotary.py --library target/release/liblongrope.so

Prints `family,op,shape,unit,ours,peer,peer_value,ratio`; a ratio above 1 is better than the peer.
"""

import argparse
import statistics

import torch
from longrope import PARITY, Longrope
from transformers import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding, apply_rotary_pos_emb

REPEATS = 25


def oracle(library):
    """The largest difference from transformers, for LongRoPE factors short and long, far positions included."""
    heads, dim, length = 4, 96, 64
    factors = [1.0 + 63.0 * (i / 47) ** 3 for i in range(48)]
    worst = 0.0
    for total in (4096, 131072):
        config = Phi3Config(
            hidden_size=heads * dim,
            num_attention_heads=heads,
            num_key_value_heads=2,
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            rope_scaling={
                "type": "longrope",
                "rope_type": "longrope",
                "short_factor": [1.0] * 48,
                "long_factor": factors,
            },
        )
        embedding = Phi3RotaryEmbedding(config).cuda()
        q = torch.randn(1, heads, length, dim, device="cuda")
        k = torch.randn(1, 2, length, dim, device="cuda")
        positions = torch.arange(total - length, total, device="cuda")[None]
        cos, sin = embedding(q, positions)
        expected = apply_rotary_pos_emb(q, k, cos, sin)
        sets = library.factor_sets(
            embedding.inv_freq.tolist(), gain=float(embedding.attention_scaling), angles=PARITY
        )
        ours = [torch.full_like(q, float("nan")), torch.full_like(k, float("nan"))]
        pairs = [(x.transpose(1, 2), y.transpose(1, 2)) for x, y in zip((q, k), ours)]
        library.rotary(sets, pairs, position_offset=total - length)()
        for found, exact in zip(ours, expected):
            worst = max(worst, (found - exact).abs().max().item())
        assert worst < 2e-6, f"off by {worst} from transformers at {total} tokens"
    print(f"oracle: within {worst:.2e} of transformers' Phi-3 rotary in f32, parity mode, up to position 131071")


def elapsed(work):
    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def alternate(ours, peer):
    """Medians, in milliseconds, of ours and the peer taking turns."""
    for _ in range(3):
        ours(), peer()
    times = [(elapsed(ours), elapsed(peer)) for _ in range(REPEATS)]
    return [statistics.median(column) for column in zip(*times)]


def peers(q, k, frequencies):
    """Names and functions that rotate q and k, [1, length, heads, head_dim]."""
    length = q.shape[1]
    angles = torch.outer(torch.arange(length, device="cuda", dtype=torch.float32), frequencies)
    cos, sin = (f(torch.cat((angles, angles), -1)).to(q.dtype)[None] for f in (torch.cos, torch.sin))
    q_heads, k_heads = q.transpose(1, 2), k.transpose(1, 2)
    yield "transformers eager, bf16 table given", lambda: apply_rotary_pos_emb(q_heads, k_heads, cos, sin)
    compiled = torch.compile(apply_rotary_pos_emb)
    yield "transformers compiled, bf16 table given", lambda: compiled(q_heads, k_heads, cos, sin)
    try:
        from liger_kernel.ops.rope import LigerRopeFunction

        yield "Liger, bf16 table given", lambda: LigerRopeFunction.apply(q_heads, k_heads, cos, sin)
    except ImportError as error:
        print(f"not measured: Liger ({error})")
    try:
        import flashinfer

        indptr = torch.tensor([0, length], dtype=torch.int32, device="cuda")
        offsets = torch.zeros(1, dtype=torch.int32, device="cuda")
        yield "FlashInfer, fp32 angles", lambda: flashinfer.apply_rope_inplace(q[0], k[0], indptr, offsets)
    except ImportError as error:
        print(f"not measured: FlashInfer ({error})")


def times(library):
    print("family,op,shape,unit,ours,peer,peer_value,ratio")
    for length, heads in ((131072, (32, 8)), (65536, (32, 32))):
        dim = 128
        q, k = (torch.randn(1, length, h, dim, device="cuda", dtype=torch.bfloat16) for h in heads)
        outputs = [torch.empty_like(q), torch.empty_like(k)]
        frequencies = 1e4 ** (-torch.arange(0, dim, 2, device="cuda", dtype=torch.float32) / dim)
        ours = library.rotary(library.factor_sets(frequencies.tolist()), list(zip((q, k), outputs)))
        moved = 2 * (q.numel() + k.numel()) * q.element_size() / 1e6
        for name, peer in peers(q, k, frequencies):
            our_time, peer_time = alternate(ours, peer)
            print(
                f"rotary,out_of_place,b1 s{length} h{heads[0]}/{heads[1]} d{dim} Bf16,GB/s,"
                f'{moved / our_time:.1f},"{name}",{moved / peer_time:.1f},{peer_time / our_time:.3f}'
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, help="liblongrope.so")
    torch.cuda.init()
    torch.zeros(1, device="cuda")  # makes PyTorch's context current
    library = Longrope(parser.parse_args().library)
    oracle(library)
    times(library)


if __name__ == "__main__":
    main()
