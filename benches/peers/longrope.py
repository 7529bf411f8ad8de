"""The C ABI of longrope, called by ctypes on PyTorch's tensors and stream."""

import ctypes as c

import torch

DTYPES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
PARITY = 1


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
        described = FrequenciesF32(
            c.sizeof(FrequenciesF32), angles, len(frequencies), values, None, None, gain, 0.0, 0, 0
        )
        sets = c.c_void_p()
        self.check(self.library.longrope_factor_sets_from_frequencies_f32(c.byref(described), c.byref(sets)))
        return sets

    def rotary(self, sets, tensors, position_offset=0):
        """A function that rotates (input, output) pairs of [batch, length, heads, head_dim] on the current stream."""
        desc = RotaryDesc(c.sizeof(RotaryDesc), 0, 0, 0, 0, 0, sets, position_offset, None, 0, None, None)
        io = (TensorIo * len(tensors))(*(TensorIo(view(x), view(y)) for x, y in tensors))
        stream = c.c_void_p(torch.cuda.current_stream().cuda_stream)

        def run():
            self.check(self.library.longrope_rotary_run(self.context, c.byref(desc), io, c.c_size_t(len(io)), stream))

        return run


def view(x):
    return Tensor(x.data_ptr(), DTYPES[x.dtype], (c.c_int64 * 4)(*x.shape), (c.c_int64 * 4)(*x.stride()))
