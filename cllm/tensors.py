"""Arrays in the format of safetensors, written straight from memory and read one at a time; models sealed by a checksum.

The seal of a model file is a sha256 over every byte of it, header and all, with the seal's own digits as zeros. It stands
among the metadata, so that other readers of the format take the file as it is.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from cllm.errors import SnapshotError
from cllm.files import CHUNK, whole, write_file

CODES = {"float32": "F32", "float64": "F64", "uint8": "U8"}  # how safetensors calls them
SEAL, UNSEALED = "sha256", "0" * 64
# Metadata of the files that version 0.1.0 wrote, without a seal.
FIRST_FORM = {"config", "dtype"}
LONGEST_HEADER = 100_000_000  # bytes, as the library has it
DAMAGE = (OSError, SafetensorError, ValueError, TypeError)  # what reading a file that is none of ours may raise
AGAIN = "Save the model again, or choose another file."


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of the elements of an array that is whole in a file, of one axis, where it begins there, and how many elements of a
    parameter each stands for."""

    mine: np.ndarray
    shape: tuple[int, ...]
    start: int
    per: int = 1

    @property
    def dtype(self) -> np.dtype:
        return self.mine.dtype

    @property
    def size(self) -> int:
        """Elements that are here."""
        return self.mine.size

    @property
    def nbytes(self) -> int:
        """Of the whole array."""
        return prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[np.ndarray]:
        """What is here."""
        return iter([self.mine])

    def __setitem__(self, everything, whole: np.ndarray) -> None:
        """Take what is here from the whole array."""
        self.mine[...] = whole.reshape(-1)[self.start:self.start + self.size]


@dataclass(frozen=True, slots=True)
class Streamed:
    """An array that is written as pieces of it come, each of one axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    source: Iterator[np.ndarray]

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[np.ndarray]:
        """Once."""
        return self.source


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict:
    """Write and sync a file; the library's own writer copies all arrays first. Returns size and sha256 of the file."""
    return write_file(path, _parts(arrays, metadata))


def write_sealed(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict:
    """The same with a seal, for a file that is to be read alone."""
    digest = hashlib.sha256()
    for part in _parts(arrays, {**metadata, SEAL: UNSEALED}):
        digest.update(part)
    return write_file(path, _parts(arrays, {**metadata, SEAL: digest.hexdigest()}))


def save_model(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a sealed file that appears whole or not at all (see `cllm.files.whole`).

    Raises
    ------
    SnapshotError
        When it cannot be written.
    """
    try:
        with whole(path) as place:
            write_sealed(place, arrays, metadata)
    except (OSError, ValueError, TypeError) as error:
        raise SnapshotError(f"save({_named(path)})", "must be a place for a file that can be written", _reason(error),
                            "Choose another path, or make room.") from error


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Metadata of a model file, after checking every byte against its seal.

    Raises
    ------
    SnapshotError
        When the file is missing, damaged, or none that `save_model` wrote.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(LONGEST_HEADER, os.fstat(file.fileno()).st_size - 8):
                raise ValueError("no header of arrays")
            header = file.read(length)
            metadata = json.loads(header).get("__metadata__")
            if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
                raise ValueError("a header without metadata")
            if SEAL in metadata:
                unsealed = header.replace(metadata[SEAL].encode(), UNSEALED.encode(), 1)
                digest = hashlib.sha256(start + unsealed)
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                if digest.hexdigest() != metadata[SEAL]:
                    raise ValueError("another checksum than its own")
            elif set(metadata) != FIRST_FORM:
                raise ValueError("a file without a checksum")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise foreign(path, error) from error
    return metadata


def load_model(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill the arrays from a model file.

    Raises
    ------
    SnapshotError
        When it has others, or in other shapes; nothing is written then.
    """
    try:
        check_arrays(path, arrays)
        read_arrays(path, arrays)
    except DAMAGE as error:
        raise foreign(path, error) from error


def check_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a file that does not hold exactly these arrays, in these shapes and dtypes; raises one of `DAMAGE`."""
    with safe_open(path, framework="numpy") as file:
        found = {n: (tuple(file.get_slice(n).get_shape()), file.get_slice(n).get_dtype()) for n in file.keys()}
    wanted = {n: (a.shape, CODES[str(a.dtype)]) for n, a in arrays.items()}
    differ = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
    if differ:
        raise ValueError(f"{differ[0]} as {found.get(differ[0])} where {wanted.get(differ[0])} is needed")


def read_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill the arrays from a file that `check_arrays` took, one at a time."""
    with safe_open(path, framework="numpy") as file:
        for name, array in arrays.items():
            array[...] = file.get_tensor(name)


def pieces_of(array) -> Iterator[np.ndarray]:
    """An array's elements in order, as flat arrays: one of an array in memory, some of one on disk (`StoredArray`)."""
    return array.pieces() if hasattr(array, "pieces") else iter([np.ascontiguousarray(array).reshape(-1)])


def foreign(path: str | os.PathLike, error: Exception) -> SnapshotError:
    """The refusal of a file that is no model of ours, for the reason that `error` gives."""
    return SnapshotError(f"load({_named(path)})", "must be a model that cllm saved", _reason(error), AGAIN)


def _parts(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """A file's bytes: the length of the header, the header, the arrays one after another."""
    header: dict = {"__metadata__": dict(metadata)}
    start = 0
    for name, array in arrays.items():
        nbytes = array.size * array.dtype.itemsize  # expanded, where a file of another's holds it otherwise
        header[name] = {"dtype": CODES[str(array.dtype)], "shape": list(array.shape), "data_offsets": [start, start + nbytes]}
        start += nbytes
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for array in arrays.values():
        for piece in pieces_of(array):
            yield piece.view(np.uint8).data


def _named(path) -> str:
    return repr(os.fspath(path) if isinstance(path, os.PathLike) else path)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
