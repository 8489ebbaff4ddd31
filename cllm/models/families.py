"""The families that are built in, and the way back from a file to a model."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cllm.errors import CllmError, ConfigError
from cllm.models.adapted import Adapted
from cllm.models.architecture import Architecture, family_name
from cllm.models.crystalline import Crystalline
from cllm.models.gemma import Gemma
from cllm.models.gpt import GPT, ModelConfig
from cllm.models.llama import Llama
from cllm.models.model import Model
from cllm.models.neox import NeoX
from cllm.models.phi import Phi
from cllm.program.program import Program
from cllm.program.trained import Patterns, with_trained
from cllm.tensors import DAMAGE, check_arrays, foreign, load_model, read_arrays, read_metadata
from cllm.weights.header import read_header

FAMILIES: dict[str, type[Architecture]] = {kind.family: kind for kind in (ModelConfig, Crystalline, Llama, Gemma, NeoX, Phi)}
FOREIGN = (KeyError, ValueError, TypeError, AttributeError, RecursionError)  # what metadata of another's making may lead to
FIRST = ModelConfig  # where no family is named; its settings are options of the command line


def model_of(architecture: Architecture, seed: int | None = 0, dtype: str = "float32", trainable: Patterns = None,
             arrays: Mapping[str, np.ndarray] | None = None, compute: str = "float32") -> Model:
    """The model of an architecture: a `GPT` where it is a `ModelConfig`."""
    return (GPT if isinstance(architecture, ModelConfig) else Model)(architecture, seed, dtype, trainable, arrays, compute)


def family_of(metadata: Mapping) -> str:
    """The family that a file records; files from before they did are of the first."""
    return metadata.get("family", FIRST.family)


def kind_of(metadata: Mapping, architecture: type[Architecture] | None = None) -> type[Architecture]:
    """The class of the family that a file's metadata name; what is wrong here is the caller's, who is told what to pass.

    Parameters
    ----------
    metadata, architecture : as of `architecture_of`

    Raises
    ------
    ConfigError
        When the family is unknown or another.
    """
    name = str(family_of(metadata))
    if name == Adapted.family:
        return Adapted
    kind = FAMILIES.get(name) if architecture is None else architecture
    if kind is None:
        raise ConfigError("architecture", f"must be given for a family that is not built in ({', '.join(FAMILIES)})",
                          f"a file of {name!r}", "Pass the class, architecture=Mine; on the command line, --model "
                          "FILE.py:Class. What a file names is never run.")
    if not isinstance(kind, type) or not issubclass(kind, Architecture):
        raise ConfigError("architecture", "must be a class that derives from cllm.Architecture", repr(kind), "Pass the class.")
    if family_name(kind).rpartition(":")[2] != name.rpartition(":")[2]:
        raise ConfigError("architecture", f"must be the class that was saved, {name!r}", family_name(kind),
                          "Pass that class.")
    return kind


def architecture_of(metadata: Mapping, architecture: type[Architecture] | None = None) -> Architecture:
    """The architecture that a file's metadata describe (see `metadata_of`). Nothing that a file names is imported or run.

    Parameters
    ----------
    metadata : dict
        With ``config``, and ``family`` unless it is the first, gpt.
    architecture : class or None
        The family, needed where it is not built in.

    Raises
    ------
    ConfigError
        As `kind_of`, or when the settings are not those of the family.
    """
    kind, config = kind_of(metadata, architecture), metadata["config"]
    settings = json.loads(config) if isinstance(config, str) else config
    if kind is Adapted:
        settings = {**settings, "base": architecture_of(settings["base"], None if architecture is Adapted else architecture)}
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
    except TypeError as error:
        raise ConfigError("architecture", f"must have the settings of {family_name(kind)}", str(error),
                          "Use the version of the class that saved the file.") from error


def class_of(architecture: Architecture) -> type[Architecture]:
    """The class of an architecture, or of that which has adapters."""
    return type(architecture.base if isinstance(architecture, Adapted) else architecture)


def is_callers(kind: type[Architecture], error: Exception) -> bool:
    """Whether settings that the class refuses are a matter of the caller's class, and not of a file that is not ours."""
    return isinstance(error, CllmError) and kind not in FAMILIES.values()


def load(path: str | Path, architecture: type[Architecture] | None = None, mapped: bool = False,
         trainable: Patterns = None) -> Model:
    """The model that `Model.save` wrote.

    Parameters
    ----------
    path : str or Path
    architecture : class or None
        The family, where it is a user's own. Nothing that the file names is executed.
    mapped : bool
        Frozen parameters are the file's own bytes, mapped read-only: processes that map one file share them, and the system
        reads them again where memory is short. Without `trainable`, all are frozen (adapters can be added); the file must stay
        as it is meanwhile.
    trainable : str, several of them, or None
        As of `Model`.

    Raises
    ------
    SnapshotError
        When the file is missing, damaged, or not one of ours: every byte is checked against its checksum.
    ConfigError
        When the family is not built in and not given.
    """
    metadata = read_metadata(path)
    kind = kind_of(metadata, architecture)
    with _refusing(path, kind):
        found, dtype = architecture_of(metadata, architecture), metadata["dtype"]
        program = found.program
    trainable = () if mapped and trainable is None else trainable
    program = with_trained(program, trainable)
    with _refusing(path, kind):
        arrays = mapped_arrays(path, program, dtype) if mapped else {}
        model = model_of(found, None if mapped else 0, dtype, trainable, arrays, metadata.get("compute", "float32"))
    if not mapped:
        load_model(path, model.parameters)
    elif arrays.keys() != model.parameters.keys():
        read_arrays(path, {name: array for name, array in model.parameters.items() if name not in arrays})
    return model


@contextmanager
def _refusing(path: str | Path, kind: type[Architecture]) -> Iterator[None]:
    """A file whose settings make no model is none of ours, unless the caller's class says so."""
    try:
        yield
    except FOREIGN as error:
        if is_callers(kind, error):
            raise
        raise foreign(path, error) from error


def mapped_arrays(path: str | Path, program: Program, dtype: str) -> dict[str, np.ndarray]:
    """Frozen parameters of a file of ours, read-only, as its bytes hold them."""
    shapes = {name: np.broadcast_to(np.zeros(1, dtype), p.shape) for name, p in program.parameters.items()}
    try:
        check_arrays(path, shapes)
    except DAMAGE as error:
        raise foreign(path, error) from error
    tensors, _ = read_header(Path(path))
    return {name: np.asarray(tensors[name].raw()) for name in sorted(program.frozen)}
