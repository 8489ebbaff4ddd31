"""A directory as the ecosystem keeps models: config.json, safetensors in one file or in shards, and files to hand on."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from cllm.errors import SnapshotError
from cllm.files import whole
from cllm.weights.beside import files_beside
from cllm.weights.header import SIZES, Tensor, read_header

CONFIG, SINGLE, INDEX, ADAPTER = "config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")
MOST_SHARD_BYTES = 5_000_000_000


def read_config(directory: Path) -> dict:
    """``config.json`` of a directory.

    Raises
    ------
    SnapshotError
    """
    if (directory / ADAPTER).exists() and not (directory / CONFIG).exists():
        raise SnapshotError(str(directory), "must hold a whole model", f"an adapter, {ADAPTER}",
                            "Load the model that it is of, and then cllm.load_adapter(model, directory).")
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotError(str(directory), f"must be a directory with {CONFIG}", f"{type(error).__name__}: {error}",
                            "Give a model's directory, as transformers saves it.") from error
    if not isinstance(config, dict):
        raise SnapshotError(str(directory / CONFIG), "must be a JSON object", type(config).__name__, "Download it again.")
    return config


def find_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a directory by name; only headers are read.

    With an index, exactly the shards that it names are opened, and each name must be in the shard that is said to hold it.

    Raises
    ------
    SnapshotError
    """
    index = directory / INDEX
    if not index.exists():
        if not (directory / SINGLE).exists():
            pickled = [name for name in PICKLED if (directory / name).exists()]
            raise SnapshotError(str(directory), f"must hold {SINGLE} or {INDEX}",
                                f"{pickled[0]}, which is pickled code" if pickled else "neither",
                                "Convert the model to safetensors; pickled files are never opened.")
        return read_header(directory / SINGLE)[0]
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        named = all(isinstance(n, str) and isinstance(f, str) and Path(f).name == f for n, f in places.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotError(str(index), "must hold a weight_map of names to files", f"{type(error).__name__}: {error}",
                            "Download it again.") from error
    if not named:
        raise SnapshotError(str(index), "must name files of its own directory", str(places)[:200], "Download it again.")
    shards = {file: read_header(directory / file)[0] for file in dict.fromkeys(places.values())}
    for name, file in places.items():
        if name not in shards[file]:
            raise SnapshotError(str(directory / file), f"must hold {name}, as the index says", "no such tensor",
                                "Download the shard again.")
    return {name: shards[file][name] for name, file in places.items()}


class Write:
    """One tensor to be written: its name, dtype by safetensors' name, shape, file, and what makes its bytes."""

    def __init__(self, name: str, code: str, shape: tuple[int, ...], file: str, make: Callable[[], np.ndarray]):
        self.name, self.code, self.shape, self.file, self.make = name, code, shape, file, make

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * SIZES[self.code]


def write_directory(directory: Path, config: Mapping, tensors: Iterable[Write], source: Path | None) -> None:
    """Write config and tensors, and copy what belongs to a model from `source`; each file is whole or not there.

    Raises
    ------
    SnapshotError
        When it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shards: dict[str, list[Write]] = {}
        for tensor in tensors:
            shards.setdefault(tensor.file, []).append(tensor)
        for file, some in shards.items():
            _write(directory / file, _shard(some))
        if list(shards) != [SINGLE]:
            index = {"metadata": {"total_size": sum(t.nbytes for some in shards.values() for t in some)},
                     "weight_map": {t.name: file for file, some in sorted(shards.items()) for t in some}}
            _write(directory / INDEX, [(json.dumps(index, indent=2) + "\n").encode()])
        else:
            (directory / INDEX).unlink(missing_ok=True)
        _write(directory / CONFIG, [(json.dumps(config, indent=2) + "\n").encode()])
        if source is not None and source.resolve() != directory.resolve():
            for name, contents in files_beside(source):
                (directory / name).parent.mkdir(exist_ok=True)
                _write(directory / name, [contents])
    except OSError as error:
        raise SnapshotError(f"save_pretrained({str(directory)!r})", "must be a place that can be written",
                            error.strerror or str(error), "Choose another directory, or make room.") from error


def write_adapter(directory: Path, config: Mapping, file: str, tensors: list[Write]) -> None:
    """Write an adapter's settings and its tensors, each file whole or not there.

    Raises
    ------
    SnapshotError
        When it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / file, _shard(tensors))
        _write(directory / ADAPTER, [(json.dumps(config, indent=2) + "\n").encode()])
    except OSError as error:
        raise SnapshotError(f"save_adapter({str(directory)!r})", "must be a place that can be written",
                            error.strerror or str(error), "Choose another directory, or make room.") from error


def _shard(tensors: list[Write]) -> Iterator[bytes]:
    """A file's bytes: the length of the header, the header, the tensors one after another."""
    header: dict = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        stop = start + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.code, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors:
        yield np.ascontiguousarray(tensor.make()).reshape(-1).view(np.uint8).data


def _write(path: Path, parts: Iterable[bytes]) -> None:
    """A file that replaces what was there when it is complete."""
    with whole(path) as place, open(place, "wb") as out:
        out.writelines(parts)


def shard_names(sizes: list[int]) -> list[str]:
    """The file of each tensor of these sizes, in order: one file, or as many of `MOST_SHARD_BYTES` as they need."""
    number, room, places = 0, 0, []
    for nbytes in sizes:
        if not places or room + nbytes > MOST_SHARD_BYTES:
            number, room = number + 1, 0
        places.append(number)
        room += nbytes
    if number <= 1:
        return [SINGLE] * len(sizes)
    return [f"model-{place:05d}-of-{number:05d}.safetensors" for place in places]
