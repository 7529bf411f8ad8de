"""The gradients of attention beside what a user would pick instead, on one GPU.

First the oracle, which shares no code with ours: gradients of PyTorch's FlashAttention-2 on small shapes. Both are held against
gradients in f64, and ours may be no further off. Then the times, in five rounds in which each has its turn, as those of
attention.py: cuDNN in this process, FlashAttention-3 in one of its own; the forward pass is done before, and is not timed.

    python3 benches/peers/backward.py --library target/release/liblongrope.so

Needs PyTorch; FlashAttention-3 is measured where flash-attn3-jax is installed.
"""

import itertools

import attention
import torch
import torch.nn.functional as F
from attention import Case, errors, start_worker
from longrope import Longrope
from torch.nn.attention import SDPBackend, sdpa_kernel
from turns import Rows, agree, arguments

ROUNDS = 5

CASES = [
    Case(8, 2048, 16, 16, 128, True),
    Case(1, 16384, 16, 16, 128, True),
    Case(1, 16384, 16, 16, 128, False),
    Case(1, 16384, 32, 8, 128, True),
    Case(1, 131072, 8, 2, 128, True),
    Case(1, 16384, 32, 32, 64, True),
    Case(1, 65536, 8, 8, 64, True),
    Case(1, 16384, 16, 16, 96, True),
    Case(1, 16384, 8, 8, 256, True),
]
# The peers are in their default mode, ours may take any order too; but once in its own default mode, which is deterministic. A goal
# of its own says what that may cost.
DETERMINISTIC = CASES[1]


def operations(case):
    """Five products of two operations a logit, where the forward pass has two."""
    return 2.5 * case.operations()


def ours(library, q, k, v, d_out, causal, fast):
    """A launch of our backward pass, and the gradients that it writes."""
    scale = q.shape[-1] ** -0.5
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device="cuda")
    library.attention(q, k, v, out, lse, causal, scale)()
    return library.attention_backward(q, k, v, out, d_out, lse, causal, scale, fast)


def in_torch(backend, q, k, v, d_out, causal):
    """A launch of a backward pass of PyTorch's, which returns the gradients."""
    leaves = [x.detach().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    grouped = q.shape[2] != k.shape[2]
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(*leaves, is_causal=causal, enable_gqa=grouped)
    d_out = d_out.transpose(1, 2)
    return lambda: torch.autograd.grad(out, leaves, d_out, retain_graph=True)


# --- the oracle ---


def gradients_in_f64(q, k, v, d_out, causal):
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    group = q.shape[2] // k.shape[2]
    q, k, v = leaves[0], *(x.repeat_interleave(group, 2) for x in leaves[1:])
    logits = torch.einsum("blhd,bmhd->bhlm", q, k) * q.shape[-1] ** -0.5
    if causal:
        logits = logits + torch.full(logits.shape[-2:], float("-inf"), device="cuda", dtype=torch.float64).triu(1)
    out = torch.einsum("bhlm,bmhd->blhd", logits.softmax(-1), v)
    return torch.autograd.grad(out, leaves, d_out.double())


def flash_attention2_is_no_nearer(library):
    worst = 0.0
    for dtype, fast in itertools.product(attention.HALF_UNIT, (False, True)):
        for heads, key_heads in ((4, 4), (9, 3)):
            for dim in (64, 96, 128, 256):
                for length, causal in ((129, True), (333, True), (512, False)):
                    q, k, v = Case(2, length, heads, key_heads, dim, causal).inputs(dtype)
                    d_out = torch.randn_like(q)
                    run, gradients = ours(library, q, k, v, d_out, causal, fast)
                    run()
                    exact = gradients_in_f64(q, k, v, d_out, causal)
                    wide = [x.repeat_interleave(heads // key_heads, 2) for x in (k, v)]
                    theirs = in_torch(SDPBackend.FLASH_ATTENTION, q, *wide, d_out, causal)()
                    theirs = [x.transpose(1, 2) for x in theirs]
                    # Of heads that share keys, the gradients are summed.
                    shared = [x.float().unflatten(2, (key_heads, -1)).sum(3) for x in theirs[1:]]
                    for mine, peer, right in zip(gradients, [theirs[0], *shared], exact):
                        (mine, _), (peer, _) = errors(mine, right), errors(peer, right)
                        worst = max(worst, mine / (attention.SLACK * peer))
    agree("PyTorch's FlashAttention-2 backward, f16 and bf16, beside f64", worst)


# --- times ---


def works(library, case, fast):
    """Ours first, then the peer in this process, as attention.py's `ready` gives them."""
    q, k, v = case.inputs()
    d_out = torch.randn_like(q)
    makers = {
        "ours": lambda: ours(library, q, k, v, d_out, case.causal, fast)[0],
        "cuDNN": lambda: in_torch(SDPBackend.CUDNN_ATTENTION, q, k, v, d_out, case.causal),
    }
    return attention.ready(makers, case)


def times(library, worker, cases, count):
    rows = Rows("backward") if count > 1 else None
    # The peers in their default mode each time.
    for op, case in [*(("backward", case) for case in cases), ("deterministic", DETERMINISTIC)]:
        here = works(library, case, fast=op == "backward")
        found = attention.measure(worker, case, here, count, backward=True)
        torch.cuda.empty_cache()
        our_time = found.pop("ours", None)
        for name, time in found.items() if rows else ():
            rows.row(op, case.shape(), "TFLOP/s", lambda t: operations(case) / t / 1e9, our_time, name, time)


def main():
    options = arguments(__doc__.splitlines()[0])
    torch.zeros(1, device="cuda")  # makes PyTorch's context current
    torch.manual_seed(1)
    library = Longrope(options.library)
    worker = start_worker()
    try:
        if options.prepare:
            return times(library, worker, CASES[:1], 1)
        flash_attention2_is_no_nearer(library)
        times(library, worker, CASES, ROUNDS)
    finally:
        worker.stop()


if __name__ == "__main__":
    main()
