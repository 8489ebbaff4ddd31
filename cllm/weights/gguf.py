"""GGUF files: settings and tensors by name; the package `gguf` (extra ``hf``) reads the header, blocks are expanded here."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from cllm.checks import installing
from cllm.errors import ConfigError, SnapshotError
from cllm.weights.blocks import BYTES, expanded
from cllm.weights.dtypes import RAW, widened

KINDS = (*RAW, *BYTES)  # what is read: F64, F32, F16, BF16 and blocks


@dataclass(frozen=True, slots=True)
class Block:
    """A tensor as it lies in the file.

    Parameters
    ----------
    kind : str
        By GGML's name.
    shape : tuple of int
        Rows first, as NumPy has it: (out, in).
    data : array
        Mapped; bytes of whole blocks where `kind` has them.
    """

    kind: str
    shape: tuple[int, ...]
    data: np.ndarray = field(repr=False)

    def values(self) -> np.ndarray:
        """Its values, in float32 unless they are wider."""
        if self.kind in BYTES:
            return expanded(self.data, self.kind).reshape(self.shape)
        return widened(self.raw(), self.kind)

    @property
    def code(self) -> str:
        """Its kind; of elements, safetensors has the same names."""
        return self.kind

    def raw(self) -> np.ndarray:
        """Its elements in the dtype of `RAW`, where `kind` has no blocks."""
        return self.data.reshape(-1).view(RAW[self.kind]).reshape(self.shape)

    def rows(self, order: np.ndarray | None = None) -> tuple[str, np.ndarray, np.ndarray | None]:
        """Its kind and the bytes of each row of a matrix, as `cllm.weights.stored` takes them, with their order."""
        return self.kind, np.asarray(self.data).reshape(-1).view(np.uint8).reshape(self.shape[0], -1), order


@dataclass(frozen=True, slots=True)
class GGUF:
    """A file: `settings` by key, `tensors` by name."""

    path: Path
    settings: dict = field(repr=False)
    tensors: dict[str, Block] = field(repr=False)

    def __getitem__(self, key: str):
        """A setting.

        Raises
        ------
        SnapshotError
            When it is not there.
        """
        if key not in self.settings:
            raise SnapshotError(str(self.path), f"must say {key}", "no such key", "Convert the model again.")
        return self.settings[key]


def read_gguf(path: str | Path) -> GGUF:
    """What a file holds; tensors are mapped, not read.

    Raises
    ------
    ConfigError
        When the library is not installed.
    SnapshotError
        When the file is missing or damaged, or a tensor's kind is not built.
    """
    path = Path(path)
    try:
        now = path.stat()
    except OSError as error:
        raise SnapshotError(str(path), "must be a file that can be read", error.strerror or str(error),
                            "Check the path.") from error
    return _read(path, now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=1)  # a vocabulary takes seconds to read, and weights, tokenizer and template each ask for the file
def _read(path: Path, _size: int, _changed: int) -> GGUF:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("from_gguf", "needs the library gguf", "an installation without it",
                          installing("hf")) from error
    try:
        reader = gguf.GGUFReader(path)
        settings = {key: one.contents() for key, one in reader.fields.items()}
        tensors = {t.name: Block(t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)), t.data) for t in reader.tensors}
    except Exception as error:  # whatever the library meets in a damaged file
        raise SnapshotError(str(path), "must be a whole GGUF file", f"{type(error).__name__}: {error}",
                            "Copy or download the file again.") from error
    other = sorted({t.kind for t in tensors.values()} - set(KINDS))
    if other:
        raise SnapshotError(str(path), f"must hold tensors of {', '.join(KINDS)}", ", ".join(other),
                            "Choose a file with these, such as one in Q8_0.")
    return GGUF(path, settings, tensors)
