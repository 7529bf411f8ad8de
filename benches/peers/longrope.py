"""The C ABI of longrope, called by ctypes on PyTorch's tensors and stream."""

import ctypes as c

import torch

DTYPES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
PARITY = 1
OFFSET, PER_TOKEN = 0, 3


# longrope_attention_backward_flags
ATTENTION_BACKWARD_FAST = 1


class Tensor(c.Structure):
    _fields_ = [("data", c.c_void_p), ("dtype", c.c_int32), ("shape", c.c_int64 * 4), ("stride", c.c_int64 * 4)]


class TensorIo(c.Structure):
    _fields_ = [("input", Tensor), ("output", Tensor)]


class FrequenciesF32(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("angles", c.c_int32),
        ("pairs", c.c_int64),
        ("short_frequencies", c.POINTER(c.c_float)),
        ("long_frequencies", c.POINTER(c.c_float)),
        ("plain", c.POINTER(c.c_float)),
        ("short_gain", c.c_double),
        ("long_gain", c.c_double),
        ("original_length", c.c_int64),
        ("first_tokens", c.c_int64),
    ]


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


class KvCache(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("page_kind", c.c_int32),
        ("length_bits", c.c_int32),
        ("flags", c.c_uint32),
        ("k", Tensor),
        ("v", Tensor),
        ("lengths", c.c_void_p),
        ("page_table", c.c_void_p),
        ("sequences", c.c_int64),
        ("table_width", c.c_int64),
        ("table_stride", c.c_int64),
    ]


class NewTokens(c.Structure):
    _fields_ = [
        ("sequence_kind", c.c_int32),
        ("index_bits", c.c_int32),
        ("starts", c.c_void_p),
        ("most", c.c_int64),
    ]


class CacheRotaryDesc(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("pairing", c.c_int32),
        ("choice_kind", c.c_int32),
        ("flags", c.c_uint32),
        ("sets", c.c_void_p),
        ("choice_length", c.c_int64),
        ("choices", c.c_void_p),
    ]


class DecodeDesc(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("splits", c.c_int32),
        ("scale", c.c_float),
        ("flags", c.c_uint32),
        ("window", c.c_int64),
        ("tokens", NewTokens),
        ("rotary", c.POINTER(CacheRotaryDesc)),
        ("status", c.c_void_p),
    ]


class DecodeTensors(c.Structure):
    _fields_ = [("q", Tensor), ("out", Tensor), ("lse", Tensor)]


class Longrope:
    """The library at a path, with a context on device 0, whose CUDA context must be current."""

    def __init__(self, path):
        self.library = c.CDLL(path)
        self.library.longrope_last_error_message.restype = c.c_char_p
        self.context = c.c_void_p()
        self.check(self.library.longrope_context_create(0, c.byref(self.context)))

    def check(self, status):
        if status != 0:
            raise RuntimeError(f"status {status}: {self.library.longrope_last_error_message().decode()}")

    def factor_sets(self, frequencies, gain=1.0, angles=0):
        """One set for every position, from the f32 inverse frequencies of a model."""
        values = (c.c_float * len(frequencies))(*frequencies)
        size = c.sizeof(FrequenciesF32)
        described = FrequenciesF32(size, angles, len(frequencies), values, None, None, gain, 0.0, 0, 0)
        sets = c.c_void_p()
        self.check(self.library.longrope_factor_sets_from_frequencies_f32(c.byref(described), c.byref(sets)))
        return sets

    def rotary(self, sets, tensors, position_offset=0, positions=None, interleaved=False):
        """A function that rotates (input, output) pairs of [batch, length, heads, head_dim] on the current stream.

        `positions`, int64 [batch, length] on the GPU, are used instead of the offset if they are given.
        """
        desc = RotaryDesc(struct_size=c.sizeof(RotaryDesc), pairing=int(interleaved), sets=sets)
        if positions is None:
            desc.position_kind, desc.position_offset = OFFSET, position_offset
        else:
            assert positions.dtype == torch.int64 and positions.is_contiguous()
            desc.position_kind, desc.positions = PER_TOKEN, positions.data_ptr()
        io = (TensorIo * len(tensors))(*(TensorIo(view(x), view(y)) for x, y in tensors))
        stream = current_stream()

        def run():
            self.check(self.library.longrope_rotary_run(self.context, c.byref(desc), io, c.c_size_t(len(io)), stream))

        run.keeps = (tensors, positions)  # the memory that the descriptor names
        return run

    def attention(self, q, k, v, out, lse=None, causal=True, scale=0.0):
        """A function for attention over [batch, length, heads, head_dim] on the current stream.

        `lse`, f32 [batch, length, heads], takes the log-sum-exp if it is given. A scale of 0 is the usual one.
        """
        if not hasattr(self.library, "longrope_attention_run"):
            raise NotImplementedError("this library has no longrope_attention_run")
        desc = AttentionDesc(struct_size=c.sizeof(AttentionDesc), causal=int(causal), scale=scale)
        tensors = AttentionTensors(*map(view, (q, k, v, out)), view_of_lse(lse))
        size = c.c_size_t()
        asked = self.library.longrope_attention_workspace_size(c.byref(desc), c.byref(tensors), c.byref(size))
        self.check(asked)
        workspace = torch.empty(size.value, dtype=torch.uint8, device=q.device)
        scratch = c.c_void_p(workspace.data_ptr() if size.value else None)
        stream = current_stream()

        def run():
            self.check(
                self.library.longrope_attention_run(
                    self.context, c.byref(desc), c.byref(tensors), scratch, size, stream
                )
            )

        run.keeps = (q, k, v, out, lse, workspace)
        return run

    def attention_backward(self, q, k, v, out, d_out, lse, causal=True, scale=0.0, fast=False):
        """A function for the gradients of attention on the current stream, and where it writes them: those of q, k and v.
        `fast`: sums may have any order."""
        if not hasattr(self.library, "longrope_attention_backward_run"):
            raise NotImplementedError("this library has no longrope_attention_backward_run")
        gradients = [torch.full_like(x, float("nan")) for x in (q, k, v)]
        desc = AttentionBackwardDesc(
            struct_size=c.sizeof(AttentionBackwardDesc),
            causal=int(causal),
            scale=scale,
            flags=ATTENTION_BACKWARD_FAST if fast else 0,
        )
        dq, dk, dv = map(view, gradients)
        tensors = AttentionBackwardTensors(
            *map(view, (q, k, v, out)), view_of_lse(lse), Tensor(), view(d_out), dq, dk, dv
        )
        size = c.c_size_t()
        self.check(
            self.library.longrope_attention_backward_workspace_size(c.byref(desc), c.byref(tensors), c.byref(size))
        )
        workspace = torch.empty(size.value, dtype=torch.uint8, device=q.device)
        scratch = c.c_void_p(workspace.data_ptr() if size.value else None)
        stream = current_stream()

        def run():
            self.check(
                self.library.longrope_attention_backward_run(
                    self.context, c.byref(desc), c.byref(tensors), scratch, size, stream
                )
            )

        run.keeps = (q, k, v, out, d_out, lse, gradients, workspace)
        return run, gradients

    def decode(self, q, k, v, out, lse=None, rotary=None):
        """A function for attention of the last tokens of sequences over contiguous caches, on the current stream.

        Tensors are [sequences, tokens, heads, head_dim]; k and v are full. `lse` is as for attention. `rotary`: the factor
        sets by which keys are rotated while they are read; without, they are rotated already. Queries are in both cases.
        """
        if not hasattr(self.library, "longrope_decode_run"):
            raise NotImplementedError("this library has no longrope_decode_run")
        lengths = torch.full(k.shape[:1], k.shape[1], dtype=torch.int32, device=k.device)
        cache = KvCache(struct_size=c.sizeof(KvCache), k=view(k), v=view(v), lengths=lengths.data_ptr())
        desc = DecodeDesc(struct_size=c.sizeof(DecodeDesc))
        if rotary is not None:
            # All zero: pairs are half-split, and all sequences are short.
            desc.rotary = c.pointer(CacheRotaryDesc(struct_size=c.sizeof(CacheRotaryDesc), sets=rotary))
        tensors = DecodeTensors(view(q), view(out), view_of_lse(lse))
        arguments = (c.byref(desc), c.byref(cache), c.byref(tensors))
        size = c.c_size_t()
        self.check(self.library.longrope_decode_workspace_size(*arguments, c.byref(size)))
        workspace = torch.empty(size.value, dtype=torch.uint8, device=q.device)
        scratch = c.c_void_p(workspace.data_ptr() if size.value else None)
        stream = current_stream()

        def run():
            self.check(self.library.longrope_decode_run(self.context, *arguments, scratch, size, stream))

        run.keeps = (q, k, v, out, lse, lengths, workspace)
        return run


def current_stream():
    return c.c_void_p(torch.cuda.current_stream().cuda_stream)


def view(x):
    return Tensor(x.data_ptr(), DTYPES[x.dtype], (c.c_int64 * 4)(*x.shape), (c.c_int64 * 4)(*x.stride()))


def view_of_lse(lse):
    """Of [batch, length, heads], or of none."""
    return Tensor() if lse is None else view(lse[..., None])
