"""The header of a safetensors file, checked before any byte of a tensor is believed.

    8 bytes, little-endian: n | n bytes of JSON: {name: {dtype, shape, data_offsets}, "__metadata__": {...}} | tensors
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from cllm.errors import SnapshotError
from cllm.weights.dtypes import RAW

MOST_HEADER_BYTES = 100_000_000  # as the format's own library allows
SIZES = {**{code: np.dtype(raw).itemsize for code, raw in RAW.items()}, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "BOOL": 1,
         "U64": 8, "U32": 4, "U16": 2, "U8": 1}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is: its file, dtype by safetensors' name, shape, and the place of its first byte."""

    file: Path
    code: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * SIZES[self.code]

    def raw(self) -> np.ndarray:
        """Its bytes, mapped read-only, in the dtype of `RAW`."""
        if not self.nbytes:
            return np.empty(self.shape, RAW[self.code])
        return np.memmap(self.file, RAW[self.code], "r", self.start, self.shape)

    def rows(self, order: np.ndarray | None = None) -> tuple[str, np.ndarray, np.ndarray | None]:
        """Its dtype and the bytes of each row of a matrix, mapped read-only, as `cllm.weights.stored` takes them, with their
        order."""
        shape = self.shape[0], prod(self.shape[1:]) * SIZES[self.code]
        return self.code, np.asarray(np.memmap(self.file, np.uint8, "r", self.start, shape)), order


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a file by name, in its order, and its metadata.

    Raises
    ------
    SnapshotError
        When the file is none of that format, or its header does not describe its bytes.
    """

    def refuse(got: str) -> None:
        raise SnapshotError(str(path), "must be a whole safetensors file", got, "Copy or download the file again.")

    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
                refuse(f"{size} bytes, with a header of {length}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise SnapshotError(str(path), "must be a file that can be read", error.strerror or str(error),
                            "Check the path.") from error
    except (ValueError, RecursionError) as error:
        refuse(f"a header that is no JSON: {error}")
    if not isinstance(header, dict):
        refuse("a header that is no JSON object")
    metadata = header.pop("__metadata__", {})
    tensors, spans = {}, []
    for name, entry in header.items():
        try:
            code, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            fits = all(type(n) is int and n >= 0 for n in (*shape, start, stop)) and code in SIZES
            fits = fits and stop - start == prod(shape) * SIZES[code] and 8 + length + stop <= size
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            refuse(f"tensor {name!r} described as {str(entry)[:200]}")
        tensors[name] = Tensor(path, code, shape, 8 + length + start)
        spans.append((start, stop))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            refuse(f"tensors that overlap or leave a gap at byte {start}")
        end = stop
    if 8 + length + end != size:
        refuse(f"{size} bytes, of which the header describes {8 + length + end}")
    return tensors, metadata if isinstance(metadata, dict) else {}
