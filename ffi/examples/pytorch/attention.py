#!/usr/bin/env python3
"""Attention with gradients for PyTorch, by the C library: on the memory of its tensors, on its current stream.

    python3 ffi/examples/pytorch/attention.py --library ~/longrope/lib/liblongrope.so            trains a toy, twenty steps
    python3 ffi/examples/pytorch/attention.py --library ~/longrope/lib/liblongrope.so --check    beside PyTorch's own, in f32

Nothing is compiled: the structs of longrope.h are ctypes, and `Attention` is an autograd.Function. It needs PyTorch and a GPU;
without, it says so.
"""

import argparse
import ctypes as c
import sys

try:
    import torch
except ImportError:
    torch = None


class Tensor(c.Structure):
    _fields_ = [("data", c.c_void_p), ("dtype", c.c_int32), ("shape", c.c_int64 * 4), ("stride", c.c_int64 * 4)]


class AttentionDesc(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("causal", c.c_int32),
        ("scale", c.c_float),
        ("flags", c.c_uint32),
        ("window", c.c_int64),
        ("query_offset", c.c_int64),
        ("key_offset", c.c_int64),
        ("sequence_kind", c.c_int32),
        ("index_bits", c.c_int32),
        ("sequences", c.c_int64),
        ("query_starts", c.c_void_p),
        ("key_starts", c.c_void_p),
        ("max_query_length", c.c_int64),
        ("query_offsets", c.c_void_p),
        ("status", c.c_void_p),
        ("query_rotary", c.c_void_p),
        ("max_multiprocessors", c.c_int32),
        ("reserved", c.c_int32),
        ("carry_out", Tensor),
        ("carry_lse", Tensor),
    ]


class AttentionTensors(c.Structure):
    _fields_ = [("q", Tensor), ("k", Tensor), ("v", Tensor), ("out", Tensor), ("lse", Tensor)]


class AttentionBackwardDesc(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("causal", c.c_int32),
        ("scale", c.c_float),
        ("flags", c.c_uint32),
        ("window", c.c_int64),
        ("query_offset", c.c_int64),
        ("key_offset", c.c_int64),
        ("sequence_kind", c.c_int32),
        ("index_bits", c.c_int32),
        ("sequences", c.c_int64),
        ("query_starts", c.c_void_p),
        ("key_starts", c.c_void_p),
        ("max_query_length", c.c_int64),
        ("query_offsets", c.c_void_p),
        ("status", c.c_void_p),
        ("accumulate", c.c_int32),
        ("reserved", c.c_int32),
        ("rotary", c.c_void_p),
    ]


class AttentionBackwardTensors(c.Structure):
    _fields_ = [
        ("q", Tensor),
        ("k", Tensor),
        ("v", Tensor),
        ("out", Tensor),
        ("lse", Tensor),
        ("delta", Tensor),
        ("d_out", Tensor),
        ("dq", Tensor),
        ("dk", Tensor),
        ("dv", Tensor),
    ]


def view(tensor):
    """A tensor of PyTorch as the library sees it: the same memory, with its strides."""
    dtype = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}[tensor.dtype]
    four = c.c_int64 * 4
    return Tensor(tensor.data_ptr(), dtype, four(*tensor.shape), four(*tensor.stride()))


class Library:
    """The library, with its kernels loaded for the current GPU."""

    def __init__(self, path):
        self.functions = c.CDLL(path)
        self.functions.longrope_last_error_message.restype = c.c_char_p
        torch.cuda.current_stream().synchronize()  # PyTorch's CUDA context is there and current now
        self.context = c.c_void_p()
        device = c.c_int32(torch.cuda.current_device())
        self.check(self.functions.longrope_context_create(device, c.byref(self.context)))

    def check(self, status):
        if status != 0:
            raise RuntimeError(self.functions.longrope_last_error_message().decode())

    def run(self, operation, desc, tensors):
        """Launches an operation on PyTorch's current stream. Scratch memory is PyTorch's, and is handed back at once: what it
        serves next on this stream comes after the launch."""
        arguments, size = (c.byref(desc), c.byref(tensors)), c.c_size_t()
        self.check(getattr(self.functions, f"{operation}_workspace_size")(*arguments, c.byref(size)))
        workspace = torch.empty(size.value, dtype=torch.uint8, device="cuda")
        address = c.c_void_p(workspace.data_ptr() if size.value else None)
        stream = c.c_void_p(torch.cuda.current_stream().cuda_stream)
        self.check(getattr(self.functions, f"{operation}_run")(self.context, *arguments, address, size, stream))


def attention_of(library):
    """softmax(scale q kᵀ) v with gradients, over [batch, length, heads, head_dim] of f16 or bf16; the heads of k and v divide
    those of q. A scale of 0 is the usual one."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, causal=True, scale=0.0):
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            lse = torch.empty(*q.shape[:3], 1, dtype=torch.float32, device=q.device)
            # The last query stands where the last key does.
            offset = k.shape[1] - q.shape[1]
            size = c.sizeof(AttentionDesc)
            desc = AttentionDesc(struct_size=size, causal=int(causal), scale=scale, query_offset=offset)
            library.run("longrope_attention", desc, AttentionTensors(*map(view, (q, k, v, out, lse))))
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.causal, ctx.scale, ctx.offset = causal, scale, offset
            return out

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, d_out):
            q, k, v, out, lse = ctx.saved_tensors
            # That of a sum is one number with strides of 0, which would mean a contiguous tensor.
            d_out = d_out.contiguous() if not any(d_out.stride()) else d_out
            dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
            size = c.sizeof(AttentionBackwardDesc)
            desc = AttentionBackwardDesc(
                struct_size=size, causal=int(ctx.causal), scale=ctx.scale, query_offset=ctx.offset
            )
            # Without a delta, which the library makes in its scratch memory.
            given = {"q": q, "k": k, "v": v, "out": out, "lse": lse, "d_out": d_out, "dq": dq, "dk": dk, "dv": dv}
            tensors = AttentionBackwardTensors(**{name: view(tensor) for name, tensor in given.items()})
            library.run("longrope_attention_backward", desc, tensors)
            return dq, dk, dv, None, None

    return Attention.apply


def exact(q, k, v, d_out, causal):
    """Output and gradients by PyTorch, in f32, from the same 16-bit numbers."""
    leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
    ratio = q.shape[2] // k.shape[2]
    heads_first = [x.transpose(1, 2) for x in (leaves[0], *(x.repeat_interleave(ratio, 2) for x in leaves[1:]))]
    mask = None
    if causal:
        offset = k.shape[1] - q.shape[1]
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(offset)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)
    out.backward(d_out.float())
    return out.detach(), *(x.grad for x in leaves)


def check(attention):
    """Prints how far the results are from PyTorch's; whether all are near enough.

    P and dS are rounded to 16 bits before they meet the values, keys and queries, and so are the results: half a unit each of the
    largest number that goes in. Four are allowed.
    """
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    all_near = True
    for dtype in (torch.bfloat16, torch.float16):
        for batch, queries, keys, heads, key_heads, dim, causal in [
            (2, 512, 512, 8, 8, 64, True),
            (1, 777, 1000, 8, 2, 128, True),
            (2, 300, 450, 6, 3, 96, False),
            (1, 256, 256, 4, 1, 256, True),
        ]:
            shapes = [(batch, queries, heads, dim), (batch, keys, key_heads, dim), (batch, keys, key_heads, dim)]
            q, k, v = (torch.randn(shape, dtype=dtype, device="cuda").requires_grad_() for shape in shapes)
            d_out = torch.randn(shapes[0], dtype=dtype, device="cuda")
            out = attention(q, k, v, causal)
            out.backward(d_out)
            found = (out.detach(), q.grad, k.grad, v.grad)
            shares = [
                ((ours.float() - theirs).abs().max() / theirs.abs().max()).item()
                for ours, theirs in zip(found, exact(q, k, v, d_out, causal))
            ]
            bound = 4 * torch.finfo(dtype).eps / 2
            near = all(share <= bound for share in shares)
            all_near &= near
            text = ", ".join(f"{name} {share:.1e}" for name, share in zip(("out", "dq", "dk", "dv"), shares))
            kind = str(dtype).removeprefix("torch.")
            print(f"{kind:9} {queries:4} queries, {keys:4} keys, {heads} and {key_heads} heads of {dim:3}: {text}"
                  f" of the largest{'' if near else f', more than {bound:.1e}'}")
    print("as PyTorch's" if all_near else "not as PyTorch's")
    return all_near


def train(attention):
    """Queries learn to attend to the keys whose values are wanted."""
    torch.manual_seed(1)
    k, v = (torch.randn(1, 1024, 2, 64, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    q = torch.zeros(1, 64, 4, 64, device="cuda", requires_grad=True)
    wanted = v[:, :64].repeat_interleave(2, 2).float()
    optimizer = torch.optim.Adam([q], lr=0.3)
    for step in range(20):
        optimizer.zero_grad()
        loss = (attention(q.bfloat16(), k, v, False).float() - wanted).square().mean()
        loss.backward()
        optimizer.step()
        if step % 5 == 0 or step == 19:
            print(f"step {step:2}: loss {loss.item():.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="liblongrope.so.0.1", help="the library, if the loader does not find it")
    parser.add_argument("--check", action="store_true", help="compare with PyTorch's attention in f32")
    arguments = parser.parse_args()
    if torch is None or not torch.cuda.is_available():
        print("no GPU" if torch is not None else "no GPU: there is no PyTorch to ask for one")
        return 0
    attention = attention_of(Library(arguments.library))
    if arguments.check:
        return 0 if check(attention) else 1
    train(attention)
    return 0


if __name__ == "__main__":
    sys.exit(main())
