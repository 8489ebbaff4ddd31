"""Arrays that begin on a cache line, values of bfloat16, and integers put into narrower ones."""

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from cllm import _kernels as kernels
from cllm.errors import TokenError
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


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Sixteen digits by which arrays of these names, dtypes, shapes and values are known from others."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()[:16]


def widened(array: np.ndarray) -> np.ndarray:
    """What an array holds as numbers: of one of uint16, which is bfloat16, as float32."""
    if array.dtype != np.uint16:
        return array
    wide = np.empty(array.shape, np.float32)
    kernels.copy_values(array.reshape(len(array), -1), y=wide.reshape(len(array), -1))
    return wide


def rounded(array: np.ndarray) -> np.ndarray:
    """A float32 array as bfloat16, of uint16."""
    array, bits = np.ascontiguousarray(array), np.empty(array.shape, np.uint16)
    kernels.copy_values(array.reshape(len(array), -1), y=bits.reshape(len(array), -1))
    return bits


def narrowed(where: str, ids: np.ndarray, dtype, vocab_size: int | None = None) -> np.ndarray:
    """Token ids as another integer dtype, each the number that it was.

    Parameters
    ----------
    where : str
        What an error names.
    ids : integer array
    dtype : of the result
    vocab_size : int or None
        Ids have to be below it; None asks only that the dtype holds them.

    Raises
    ------
    TokenError
        When one is negative, or too large.
    """
    dtype = np.dtype(dtype)
    if ids.size and (vocab_size is not None or not np.can_cast(ids.dtype, dtype)):
        most = int(np.iinfo(dtype).max) if vocab_size is None else vocab_size - 1
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high > most:
            raise TokenError(where, f"token ids must be from 0 to {most}", str(low if low < 0 else high),
                             "Check the tokenizer: its vocab_size is its largest id + 1.")
    return np.ascontiguousarray(ids, dtype)
