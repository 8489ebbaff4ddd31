"""From what is typed to an architecture: a family by its name, a user's class by its file or module, or a model in other
people's files by its place."""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

from cllm.errors import ConfigError
from cllm.locate import load_module
from cllm.models.architecture import Architecture, checked_architecture
from cllm.models.families import FAMILIES, architecture_of, load
from cllm.models.gguf import ENDING, forms_in_gguf, from_gguf, read_gguf_architecture
from cllm.models.gpt import ModelConfig
from cllm.models.model import Model
from cllm.models.pretrained import forms_in_directory, from_pretrained, read_architecture
from cllm.program.parts import StoredForm
from cllm.program.trained import Patterns
from cllm.tensors import read_metadata
from cllm.weights.directory import CONFIG


def family_named(text: str) -> type[Architecture]:
    """The class of ``gpt``, ``mine.py:Mine`` or ``package.module:Mine``, or of the model in ``DIRECTORY`` or ``FILE.gguf``.

    A file is loaded as if it were run from its own folder, up to the first comparison in it; what stands under
    ``if __name__ == "__main__"`` is not run.

    Raises
    ------
    ConfigError
        When there is no such family, file, module or class.
    """
    if is_files(text):
        return type(architecture_in(text))
    if text in FAMILIES:
        return FAMILIES[text]
    source, colon, name = text.rpartition(":")
    if not colon or not source:
        raise ConfigError("--model", f"must be one of {', '.join(FAMILIES)}, FILE.py:Class, module:Class, or a directory "
                          f"with {CONFIG} or a file {ENDING}", repr(text),
                          "Check the spelling, or name the class behind a colon.")
    module = _module(source)
    kind = getattr(module, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Architecture) or not is_dataclass(kind):
        there = [n for n, value in vars(module).items() if isinstance(value, type) and issubclass(value, Architecture)
                 and value is not Architecture]
        raise ConfigError("--model", f"must name an architecture in {source}: {', '.join(there) or 'it has none'}", repr(name),
                          "Name a frozen dataclass that derives from cllm.Architecture.")
    return kind


def is_files(text: str | Path) -> bool:
    """Whether this is the place of a model in other people's files: a directory with config.json, or a GGUF file."""
    path = Path(text)
    return path.suffix == ENDING or (path / CONFIG).is_file()


def architecture_in(place: str | Path) -> Architecture:
    """What a model in other people's files is; only headers are read, errors as `from_pretrained` and `from_gguf`."""
    return (read_gguf_architecture if Path(place).suffix == ENDING else read_architecture)(place)[0]


def settings_in(text: str | Path) -> dict[str, object]:
    """Every setting of such a model by name; none where `text` is no place of one."""
    if not is_files(text):
        return {}
    return _settings_of(architecture_in(text))


def _settings_of(architecture: Architecture | None) -> dict[str, object]:
    return {} if architecture is None else {f.name: getattr(architecture, f.name) for f in fields(architecture) if f.init}


def model_in(place: str | Path, dtype: str = "float32", architecture: Architecture | None = None) -> Model:
    """The model in other people's files, with the settings of `architecture` where that is given."""
    return (from_gguf if Path(place).suffix == ENDING else from_pretrained)(place, dtype, **_settings_of(architecture))


def model_at(place: str | Path, dtype: str = "float32", architecture: Architecture | None = None, trainable: Patterns = None,
             mapped: bool = False) -> Model:
    """The model in other people's files, or in one that `Model.save` wrote.

    Parameters
    ----------
    place : path
    dtype : {"float32", "float64"}
    architecture : Architecture or None
        As of `model_in`; of our own file its class is taken.
    trainable, mapped : as of `from_pretrained`

    Raises
    ------
    ConfigError, SnapshotError
        As `from_pretrained`, `from_gguf` and `load`; when our own file is of another dtype.
    """
    if not is_files(place):
        model = load(place, None if architecture is None else type(architecture), mapped, trainable)
        if model.dtype != dtype:
            raise ConfigError(f"model {place}", f"must be of {dtype}", model.dtype,
                              f"Save a copy: model.copy({dtype!r}).save(...).")
        return model
    read = from_gguf if Path(place).suffix == ENDING else from_pretrained
    return read(place, dtype, trainable, mapped, **_settings_of(architecture))


def forms_at(place: str | Path, architecture: Architecture, trainable: Patterns = None) -> dict[str, StoredForm]:
    """How frozen matrices of the model at a place of `model_at` are stored where it is mapped; only headers are read."""
    if not is_files(place):
        return {}
    return (forms_in_gguf if Path(place).suffix == ENDING else forms_in_directory)(place, architecture, trainable)


def described_at(place: str | Path) -> Architecture:
    """What the model at a place of `model_at` is; of other people's files only headers are read."""
    return architecture_in(place) if is_files(place) else architecture_of(read_metadata(place))


def made(kind: type[Architecture], settings: Mapping[str, object], preset: str | None = None,
         seq_len: int | None = None) -> Architecture:
    """An architecture of that family.

    Parameters
    ----------
    kind : class
    settings : dict
        Values by name of field.
    preset : str or None
        Sizes to begin with, of families that derive from `ModelConfig`.
    seq_len : int or None
        A model for shorter sequences is made for these, unless its setting `max_seq_len` was given.

    Raises
    ------
    ConfigError
        When settings are missing or not those of the family.
    """
    if preset is not None and not issubclass(kind, ModelConfig):
        raise ConfigError("--preset", "is for families that derive from ModelConfig", kind.__name__, "Use --set FIELD=VALUE.")
    try:
        architecture = kind(**settings) if preset is None else kind.preset(preset, **settings)
    except TypeError as error:
        raise ConfigError(kind.__name__, f"must be given its fields: {', '.join(f.name for f in fields(kind))}", str(error),
                          "Use --set FIELD=VALUE, or give the class defaults.") from error
    longest = getattr(checked_architecture("--model", architecture), "max_seq_len", None)
    if None in (seq_len, longest) or seq_len <= longest or "max_seq_len" in settings:
        return architecture
    return replace(architecture, max_seq_len=seq_len)


def _module(source: str):
    if source.endswith(".py"):
        file = Path(source).absolute()
        _look_in(file.parent)
        return load_module(file.stem, str(file))
    _look_in(Path.cwd())
    return load_module(source)


def _look_in(folder: Path) -> None:
    """Let modules be imported from a folder, as Python does from that of a script."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
