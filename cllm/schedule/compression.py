"""Compressed copies: their shapes, and the kernels that make and read them."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from cllm import _kernels as kernels
from cllm.program.dims import elements

PACKED = ("bfloat16", "int8")
ROUNDINGS = {"bfloat16": ("nearest",), "int8": ("nearest", "stochastic")}  # by dtype, the usual one first

# Numbers of the random streams that round values; those of dropout masks lie below (models/gpt.py).
FIRST_STREAM = 1 << 31
SITES_OF_A_STEP = 16


def packed_shape(dtype: str, shape: str, letters: Mapping[str, int]) -> tuple[str, str]:
    """Shape and dtype of the array that holds a compressed copy: bfloat16 as uint16, int8 as bytes behind its scales."""
    if dtype == "bfloat16":
        return shape, "uint16"
    return str(kernels.int8_bytes(letters["B"], elements(shape, letters) // letters["B"])), "uint8"


def compress_call(src: np.ndarray, dst: np.ndarray, sequences: int) -> Callable[[], None]:
    """The call that fills a copy, rounding to nearest; its kind is read off the copy's dtype."""
    if dst.dtype == np.uint16:
        return partial(kernels.compress_bfloat16, src.reshape(-1), y=dst.reshape(-1))
    return partial(kernels.compress_int8, src.reshape(sequences, -1), y=dst.reshape(-1))


def round_call(src: np.ndarray, dst: np.ndarray, sequences: int, rows: int, key: np.ndarray,
               stream: int) -> Callable[[], None]:
    """The call that fills an int8 copy, rounding at random.

    Parameters
    ----------
    src, dst : arrays
    sequences, rows : int
        B and N of the micro-batch.
    key : uint64 array of shape 3
        Seed, step, first row within the whole batch, as they are when the call runs.
    stream : int
        The value's number, as `stream_of` gives it.
    """
    return partial(kernels.compress_int8_stochastic, src.reshape(sequences, -1), key, stream, src.size // rows,
                   y=dst.reshape(-1))


def expand_call(src: np.ndarray, dst: np.ndarray, sequences: int) -> Callable[[], None]:
    """The call that reads a copy."""
    if src.dtype == np.uint16:
        return partial(kernels.expand_bfloat16, src.reshape(-1), y=dst.reshape(-1))
    return partial(kernels.expand_int8, src.reshape(-1), y=dst.reshape(sequences, -1))


def stream_of(step: int, site: int) -> int:
    """Number of the random stream that rounds what the `step`-th step leaves at its `site`-th site."""
    return FIRST_STREAM + step * SITES_OF_A_STEP + site
