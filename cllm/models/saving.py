"""A model's weights as the ecosystem's files hold them: what was loaded is remembered, so that it can be written back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cllm.errors import ConfigError
from cllm.weights.directory import Write, shard_names, write_directory
from cllm.weights.dtypes import NAMES, RAW, narrowed, widened
from cllm.weights.header import Tensor
from cllm.weights.parts import Part


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model came from: its directory or GGUF file, config.json as it was, and every tensor of safetensors files that
    became a parameter."""

    directory: Path
    config: dict
    tensors: Mapping[str, Tensor] = field(repr=False)

    def to_dict(self) -> dict:
        """The same as plain data, for a snapshot; a tensor is its file, dtype, shape and first byte."""
        tensors = {name: [str(t.file.absolute()), t.code, list(t.shape), t.start] for name, t in self.tensors.items()}
        return {"directory": str(self.directory.absolute()), "config": self.config, "tensors": tensors}

    @classmethod
    def of(cls, plain: Mapping) -> "Source":
        """What `to_dict` gave."""
        tensors = {name: Tensor(Path(file), code, tuple(shape), start)
                   for name, (file, code, shape, start) in plain["tensors"].items()}
        return cls(Path(plain["directory"]), plain["config"], tensors)


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written.

    Attributes
    ----------
    directory : Path
    elements : int
        Of all tensors.
    changed, lost : int or None
        Elements that training changed since they were loaded, and those of them whose change is smaller than the file's
        dtype can tell; None where the files that they came from are gone, or there were none.
    """

    directory: Path
    elements: int
    changed: int | None = None
    lost: int | None = None

    def __str__(self) -> str:
        text = f"{self.elements:,} elements in {self.directory}"
        if self.changed:
            text += f"; {self.changed:,} were changed"
        if self.lost:
            text += f", {self.lost:,} of them by less than the dtype of the files can tell (dtype='float32' keeps them)"
        return text


def save_directory(parameters: Mapping[str, np.ndarray], architecture, source: Source | None, directory: Path,
                   dtype: str | None) -> Saved:
    """Write a directory that the ecosystem reads.

    Parameters
    ----------
    parameters : arrays by name
    architecture : Architecture
        Of a family that files can hold.
    source : Source or None
        Its names, order, shards, dtypes and config are kept.
    directory : Path
    dtype : {"float32", "float16", "bfloat16", "float64"} or None
        None takes the source's, tensor by tensor; float32 without one.

    Raises
    ------
    ConfigError
        When the family or these settings have no such files.
    SnapshotError
        When it cannot be written, or a value is beyond the dtype.
    """
    if dtype is not None and dtype not in NAMES:
        raise ConfigError("save_pretrained(dtype=...)", f"must be None or one of {', '.join(NAMES)}", repr(dtype),
                          "Choose one of these.")
    known = {} if source is None else source.tensors
    parts = architecture.tensors(set(known) or None)
    names = [*(n for n in known if n in parts), *(n for n in parts if n not in known)]
    codes = {n: NAMES[dtype] if dtype else known[n].code if n in known else "F32" for n in names}
    shapes = {n: parts[n].shape(parameters[parts[n].parameter].shape) for n in names}
    sizes = [int(np.prod(shapes[n], dtype=np.int64)) * np.dtype(RAW[codes[n]]).itemsize for n in names]
    kept_apart = dtype is None and all(n in known for n in names)
    files = [known[n].file.name for n in names] if kept_apart else shard_names(sizes)
    count = _Count(known)

    def bytes_of(name: str) -> Callable[[], np.ndarray]:
        def make() -> np.ndarray:
            values = parts[name].read(parameters[parts[name].parameter])
            raw = narrowed(values, codes[name], f"save_pretrained, {name}")
            count.look(name, values, widened(raw, codes[name]))
            return raw
        return make

    config = architecture.to_config() if source is None else dict(source.config)
    if dtype is not None or not known:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype or "float32"
    writes = [Write(n, codes[n], shapes[n], file, bytes_of(n)) for n, file in zip(names, files, strict=True)]
    write_directory(directory, config, writes, None if source is None else source.directory)
    return Saved(directory, sum(int(np.prod(s, dtype=np.int64)) for s in shapes.values()), count.changed, count.lost)


class _Count:
    """Counts elements that changed since they were loaded, and changes that a file cannot tell."""

    def __init__(self, known: Mapping[str, Tensor]):
        self._known = known
        there = bool(known) and all(t.file.exists() for t in known.values())
        self.changed, self.lost = (0, 0) if there else (None, None)

    def look(self, name: str, values: np.ndarray, written: np.ndarray) -> None:
        if self.changed is None or name not in self._known:
            return
        before = widened(np.array(self._known[name].raw()), self._known[name].code).astype(values.dtype, copy=False)
        changed = values != before
        self.changed += int(changed.sum())
        self.lost += int((changed & (written.astype(values.dtype, copy=False) == before)).sum())


def file_names(model) -> dict[str, tuple[str, Part]]:
    """For each tensor of a model's files, the parameter that it is, and how: ``{name in file: (parameter, Part)}``."""
    known = set() if model.source is None else set(model.source.tensors)
    return {name: (part.parameter, part) for name, part in model.architecture.tensors(known or None).items()}
