"""Arrays that begin on a cache line."""

import math

import numpy as np

from cllm.program.dims import ALIGNMENT


def aligned_empty(shape: int | tuple[int, ...], dtype="float32") -> np.ndarray:
    """An uninitialised C-contiguous array whose first byte is a multiple of `ALIGNMENT`."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape if isinstance(shape, tuple) else (shape,)) * dtype.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start:start + nbytes].view(dtype).reshape(shape)


def aligned_zeros(shape: int | tuple[int, ...], dtype="float32") -> np.ndarray:
    """The same, filled with zeros."""
    array = aligned_empty(shape, dtype)
    array.fill(0)
    return array
