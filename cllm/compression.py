"""Compressed copies: their shapes, and the kernels that make and read them."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from cllm import _kernels as kernels
from cllm.dims import elements

PACKED = ("bfloat16", "int8")


def packed_shape(dtype: str, shape: str, letters: Mapping[str, int]) -> tuple[str, str]:
    """Shape and dtype of the array that holds a compressed copy: bfloat16 as uint16, int8 as bytes behind its scales."""
    if dtype == "bfloat16":
        return shape, "uint16"
    return str(kernels.int8_bytes(elements(shape, letters))), "uint8"


def compress_call(src: np.ndarray, dst: np.ndarray) -> Callable[[], None]:
    """The call that fills a copy; its kind is read off the copy's dtype."""
    make = kernels.compress_bfloat16 if dst.dtype == np.uint16 else kernels.compress_int8
    return partial(make, src.reshape(-1), y=dst.reshape(-1))


def expand_call(src: np.ndarray, dst: np.ndarray) -> Callable[[], None]:
    """The call that reads a copy."""
    make = kernels.expand_bfloat16 if src.dtype == np.uint16 else kernels.expand_int8
    return partial(make, src.reshape(-1), y=dst.reshape(-1))
