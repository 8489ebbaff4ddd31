"""From a directory as transformers saves it to a model: `from_pretrained`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cllm.errors import ConfigError, SnapshotError
from cllm.models import hub
from cllm.models.architecture import Architecture
from cllm.models.as_they_lie import as_they_lie
from cllm.models.families import FAMILIES, model_of
from cllm.models.model import Model
from cllm.models.parameters import forms_in
from cllm.models.saving import Source
from cllm.program.parts import StoredForm
from cllm.program.trained import Patterns, with_trained
from cllm.weights.directory import find_tensors, read_config
from cllm.weights.dtypes import RAW, widened
from cllm.weights.header import Tensor
from cllm.weights.parts import Part

FILES: dict[str, type[Architecture]] = {kind: family for family in FAMILIES.values() for kind in family.model_types}
MOST_NAMES = 8  # listed in an error


def read_architecture(directory: str | Path, **changes) -> tuple[Architecture, dict, dict[str, Tensor]]:
    """What a directory's model is, its config, and its tensors by name; only headers are read.

    Parameters
    ----------
    directory : str or Path
    **changes
        Settings of the family in place of the config's, such as ``dropout=0.1``.

    Raises
    ------
    SnapshotError, ConfigError
    """
    directory = Path(directory)
    config = read_config(directory)
    kind = config.get("model_type")
    if kind not in FILES:
        raise ConfigError(f"{directory / 'config.json'}, model_type", f"must be one of {', '.join(FILES)}", repr(kind),
                          "Choose a model of one of these.")
    hub.refuse_unbuilt(config, kind)
    family = FILES[kind]
    architecture = replace(family.from_config(config), **changes)
    tensors = {name: t for name, t in find_tensors(directory).items() if not family.is_buffer(name)}
    head = next((name for name in tensors if name == family.head), None)
    if architecture.tied and head is not None and not _repeats(tensors, head, architecture):
        architecture = replace(architecture, tied=False)
    return architecture, config, tensors


def from_pretrained(directory: str | Path, dtype: str = "float32", trainable: Patterns = None, mapped: bool = False,
                    compute: str = "float32", **changes: Any) -> Model:
    """The model of a directory with config.json and safetensors, as transformers saves it.

    Nothing but the model and one tensor is in memory at a time; narrow dtypes are widened without loss. Every tensor must be
    known and every parameter there.

    Parameters
    ----------
    directory : str or Path
    dtype : {"float32", "float64"}
        Of the model.
    trainable : str, several of them, or None
        As of `Model`.
    mapped : bool
        Frozen parameters are the files' own bytes, mapped read-only and never copied: matrices of any dtype, turned or in
        several pieces, which products expand while they pack them, and vectors in the model's dtype. Without `trainable`,
        all are frozen. Processes that map the same files share them; they must stay as they are meanwhile.
    compute : {"float32", "bfloat16", "bfloat16:units"}
        As of `Model`.
    **changes
        Settings of the family in place of the config's, such as ``dropout=0.1``.

    Returns
    -------
    Model
        ``model.save_pretrained(directory)`` writes it back.

    Raises
    ------
    ConfigError
        When the family, or a setting of it, is not built; before any tensor is read.
    SnapshotError
        When files are missing, damaged, or hold other tensors.
    """
    architecture, config, tensors = read_architecture(directory, **changes)
    parts = _parts(directory, architecture, tensors)
    trainable = () if mapped and trainable is None else trainable
    arrays = as_they_lie(parts, tensors, with_trained(architecture.program, trainable), dtype) if mapped else {}
    model = model_of(architecture, seed=None, dtype=dtype, trainable=trainable, arrays=arrays, compute=compute)
    for name, part in parts.items():
        if part.parameter in arrays:
            continue
        tensor, parameter = tensors[name], model.parameters[part.parameter]
        if tensor.shape != part.shape(parameter.shape) or tensor.code not in RAW:
            raise SnapshotError(f"{tensor.file}, {name}", f"must be floats of shape {part.shape(parameter.shape)}",
                                f"{tensor.code} of shape {tensor.shape}", "Check that config.json belongs to these files.")
        part.write(parameter, widened(tensor.raw(), tensor.code))
    model.source = Source(Path(directory), config, tensors)
    return model


def forms_in_directory(directory: str | Path, architecture: Architecture, trainable: Patterns) -> dict[str, StoredForm]:
    """How frozen matrices of a directory are stored where it is mapped; only headers are read, errors as `from_pretrained`."""
    _, _, tensors = read_architecture(directory)
    parts = _parts(Path(directory), architecture, tensors)
    return forms_in(as_they_lie(parts, tensors, with_trained(architecture.program, trainable), "float32"))


def _parts(directory: str | Path, architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """Which part of which parameter each tensor is; a directory that holds others, or not all, is refused."""
    parts = architecture.tensors(set(tensors))
    for names, what in ((sorted(set(parts) - set(tensors)), "hold every parameter"),
                        (sorted(set(tensors) - set(parts)), "hold no unknown tensors")):
        if names:
            listed = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else "")
            raise SnapshotError(str(directory), f"must {what}", f"{'missing' if 'every' in what else 'unknown'}: {listed}",
                                "Download it again, or check that config.json belongs to these files.")
    return parts


def _repeats(tensors: dict[str, Tensor], head: str, architecture: Architecture) -> bool:
    """Whether the head in the files is the embedding once more."""
    parts = architecture.tensors(set(tensors))
    embedding = next((n for n, p in parts.items() if p.parameter == "tok_emb.weight" and n in tensors and n != head), None)
    if embedding is None:
        return True  # told as missing later
    first, second = tensors[embedding], tensors[head]
    return (first.shape, first.code) == (second.shape, second.code) and np.array_equal(first.raw(), second.raw())
