#!/usr/bin/env python3
"""Rotary embedding with gradients for PyTorch, by the C library, beside that of transformers' Phi-3.

    python3 ffi/examples/pytorch/rotary.py --library ~/longrope/lib/liblongrope.so

`rotary_of` makes an autograd.Function of a model's configuration. Tensors on a GPU are rotated by the kernel on PyTorch's current
stream, f32 in host memory by the CPU form: it needs PyTorch, and no GPU. To compare with, it needs transformers.
"""

import argparse
import ctypes as c
import sys

from attention import Library, Tensor, torch, view

try:
    from transformers import Phi3Config, logging
    from transformers.models.phi3 import modeling_phi3 as phi3
except ImportError:
    phi3 = None

PER_TOKEN, PARITY = 3, 1  # LONGROPE_POSITIONS_PER_TOKEN, LONGROPE_ANGLES_PARITY
ORIGINAL_LENGTH, MAX_LENGTH = 4096, 131072


class TensorIo(c.Structure):
    _fields_ = [("input", Tensor), ("output", Tensor)]


class RotaryDesc(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("pairing", c.c_int32),
        ("backward", c.c_int32),
        ("position_kind", c.c_int32),
        ("choice_kind", c.c_int32),
        ("flags", c.c_uint32),
        ("sets", c.c_void_p),
        ("position_offset", c.c_int64),
        ("positions", c.c_void_p),
        ("choice_length", c.c_int64),
        ("choices", c.c_void_p),
        ("status", c.c_void_p),
    ]


class HostLibrary(Library):
    """The library where there is no GPU: without a context."""

    def __init__(self, path):
        self.functions = c.CDLL(path)
        self.functions.longrope_last_error_message.restype = c.c_char_p


def rotary_of(library, config, angles):
    """The rotation of [batch, length, heads, head_dim] by the text of a config.json. `positions` are int64 [batch, length] on the
    device of the tensor; `length` is the whole length of the sequences, which chooses between short and long factors. The factor
    sets live as long as the program."""
    text, sets = config.encode(), c.c_void_p()
    made = library.functions.longrope_factor_sets_from_json(
        text, c.c_size_t(len(text)), c.c_int64(0), c.c_int32(angles), c.byref(sets)
    )
    library.check(made)

    def rotated(x, positions, length, backward):
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        desc = RotaryDesc(
            struct_size=c.sizeof(RotaryDesc),
            backward=backward,
            position_kind=PER_TOKEN,
            sets=sets,
            positions=positions.data_ptr(),
            choice_length=length,
        )
        arguments = (c.byref(desc), c.byref(TensorIo(view(x), view(out))), c.c_size_t(1))
        if x.is_cuda:
            stream = c.c_void_p(torch.cuda.current_stream().cuda_stream)
            library.check(library.functions.longrope_rotary_run(library.context, *arguments, stream))
        else:
            library.check(library.functions.longrope_rotary_cpu(*arguments))
        return out

    class Rotary(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, positions, length):
            positions = positions.contiguous()
            ctx.save_for_backward(positions)
            ctx.length = length
            return rotated(x, positions, length, 0)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, d_out):
            # That of a sum is one number with strides of 0, which would mean a contiguous tensor.
            d_out = d_out.contiguous() if not any(d_out.stride()) else d_out
            return rotated(d_out, *ctx.saved_tensors, ctx.length, 1), None, None

    return Rotary.apply


def phi3_config():
    """Heads as those of Phi-3-mini, and made-up factors. It is warned of original_max_position_embeddings, which every Phi-3 has."""
    logging.set_verbosity_error()
    pairs = 48
    scaling = {
        "type": "longrope",
        "short_factor": [1 + 0.01 * pair for pair in range(pairs)],
        "long_factor": [1 + 0.02 * pair**2 for pair in range(pairs)],
    }
    return Phi3Config(
        hidden_size=2 * pairs * 4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        original_max_position_embeddings=ORIGINAL_LENGTH,
        rope_scaling=scaling,
    )


def check(library, device):
    """Prints how far the results are from those of Phi-3; whether all are near enough.

    Both take the angle as a product in f32. The frequencies are equal to within a unit in the last place, 2^-23 of the angle at
    most, to which a few roundings of numbers of the size of the input come.
    """
    torch.manual_seed(1)
    config = phi3_config()
    rotary = rotary_of(library, config.to_json_string(use_diff=False), PARITY)
    theirs = phi3.Phi3RotaryEmbedding(config).to(device)
    tokens, all_near = 64, True
    # From the start, to exactly the original length, which is short, one token further, which is long, and to the end.
    for first in (0, ORIGINAL_LENGTH - tokens, ORIGINAL_LENGTH - tokens + 1, MAX_LENGTH - tokens):
        positions = (first + torch.arange(tokens, device=device)).expand(2, tokens)
        shape = (2, tokens, 4, config.hidden_size // config.num_attention_heads)
        q, d_out = (torch.randn(shape, device=device) for _ in range(2))
        ours_q, theirs_q = q.clone().requires_grad_(), q.clone().requires_grad_()
        ours = rotary(ours_q, positions, first + tokens)
        ours.backward(d_out)
        cos, sin = theirs(q, positions)
        heads_first = theirs_q.transpose(1, 2)
        expected = phi3.apply_rotary_pos_emb(heads_first, heads_first, cos, sin)[0].transpose(1, 2)
        expected.backward(d_out)
        pairs = {"out": (ours, expected), "gradient": (ours_q.grad, theirs_q.grad)}
        shares = {name: ((a - b).abs().max() / b.abs().max()).item() for name, (a, b) in pairs.items()}
        bound = (first + tokens) * 2.0**-23 + 8 * 2.0**-23
        near = all(share <= bound for share in shares.values())
        all_near &= near
        text = ", ".join(f"{name} {share:.1e}" for name, share in shares.items())
        print(f"positions {first:6} to {first + tokens - 1:6}: {text} of the largest"
              f"{'' if near else f', more than {bound:.1e}'}")
    print("as Phi-3's" if all_near else "not as Phi-3's")
    return all_near


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="liblongrope.so.0.1", help="the library, if the loader does not find it")
    arguments = parser.parse_args()
    if torch is None or phi3 is None:
        print(f"nothing to compare with: there is no {'PyTorch' if torch is None else 'transformers'}")
        return 0
    has_gpu = torch.cuda.is_available()
    library = Library(arguments.library) if has_gpu else HostLibrary(arguments.library)
    print("on the GPU" if has_gpu else "no GPU: by the CPU form")
    return 0 if check(library, "cuda" if has_gpu else "cpu") else 1


if __name__ == "__main__":
    sys.exit(main())
