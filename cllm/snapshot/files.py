"""Files that are synced when they are closed, with their checksums; arrays in the format of safetensors."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

CODES = {"float32": "F32", "float64": "F64"}  # how safetensors calls them
CHUNK = 1 << 20  # bytes read at a time to check a file


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict:
    """Write a safetensors file straight from the arrays; the library's own writer copies them all first."""
    header: dict = {"__metadata__": dict(metadata)}
    start = 0
    for name, array in arrays.items():
        header[name] = {"dtype": CODES[str(array.dtype)], "shape": list(array.shape),
                        "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    data = (np.ascontiguousarray(a).reshape(-1).view(np.uint8).data for a in arrays.values())
    return write_file(path, (part for parts in ([len(text).to_bytes(8, "little"), text], data) for part in parts))


def write_file(path: Path, parts: Iterable[bytes]) -> dict:
    """Write and sync a file; its size and sha256."""
    digest, nbytes = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            nbytes += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": nbytes, "sha256": digest.hexdigest()}


def describe_arrays(path: Path) -> dict[str, tuple]:
    """Shape and safetensors' dtype of each array in a file.

    Raises
    ------
    OSError, SafetensorError
    """
    with safe_open(path, framework="numpy") as file:
        return {n: (tuple(file.get_slice(n).get_shape()), file.get_slice(n).get_dtype()) for n in file.keys()}


def read_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill the arrays from a file, one at a time."""
    with safe_open(path, framework="numpy") as file:
        for name, array in arrays.items():
            array[...] = file.get_tensor(name)


def digest_file(path: Path) -> dict:
    """Size and sha256 of a file."""
    digest, nbytes = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            nbytes += len(chunk)
    return {"bytes": nbytes, "sha256": digest.hexdigest()}


def sync_directory(directory: Path) -> None:
    """Make sure that the names in a directory survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
