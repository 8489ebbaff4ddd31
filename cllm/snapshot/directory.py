"""Snapshots of training: a directory ``step-000060`` that is there whole or not at all.

    model.safetensors       parameters by name; `cllm.load` reads it too. In its place, of a run with a base (see `Base`):
    trained.safetensors     the parameters that the base does not have
    optimizer.safetensors   the optimizer's state, ``tok_emb.weight.m``
    state.json              step, configuration, optimizer, where weights came from, the base, the kernels that computed,
                            what the caller adds, and size and sha256 of the other files

A snapshot is written under a hidden name, every file synced, and renamed when it is complete, so a process that is
killed at any moment leaves the earlier ones as they were. Reading checks every byte against state.json, and state.json
against its own checksum. Nothing in a snapshot is executed: it is JSON and arrays.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from cllm.checks import shown
from cllm.dispatch import arithmetic
from cllm.errors import SnapshotError
from cllm.files import digest_file, sync, write_file
from cllm.models.architecture import Architecture, metadata_of
from cllm.models.families import FOREIGN, architecture_of, class_of, is_callers, kind_of, model_of
from cllm.models.model import Model
from cllm.models.saving import Source
from cllm.program.trained import with_trained
from cllm.snapshot.base import Base, base_names
from cllm.tensors import DAMAGE, check_arrays, read_arrays, write_arrays, write_sealed

FORMAT = "cllm snapshot 1"
MODEL, TRAINED, OPTIMIZER, STATE = "model.safetensors", "trained.safetensors", "optimizer.safetensors", "state.json"
REMEDY = "Use another snapshot, or start afresh in another directory."


def write_snapshot(directory: str | Path, step: int, model: Model, optimizer, state: Mapping | None = None,
                   files: Mapping[str, bytes] | None = None, base: Base | None = None) -> Path:
    """Write ``directory/step-...`` and return its path; needs no memory to speak of. One of that step that is there
    already is replaced.

    Parameters
    ----------
    directory : str or Path
        Made if missing.
    step : int
        Steps taken.
    model : Model
    optimizer : AdamW, Adam, SGD or Grouped
    state : dict
        Plain data to keep beside them.
    files : dict
        Further small files, name -> contents.
    base : Base or None
        Where what is frozen can be read again, so that it is not written.

    Raises
    ------
    SnapshotError
        When it cannot be written; earlier snapshots are untouched.
    """
    directory = Path(directory)
    final = directory / f"step-{step:06d}"
    partial = directory / f".{final.name}.{os.getpid()}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        sweep(directory)
        partial.mkdir()
        meta = metadata_of(model.architecture, model.dtype, model.compute)
        weights, arrays = _weights_of(model, None if base is None else base.to_dict())
        digests = {weights: write_sealed(partial / weights, arrays, meta),
                   OPTIMIZER: write_arrays(partial / OPTIMIZER, optimizer.stored(), {"kind": optimizer.kind})}
        for name, contents in (files or {}).items():
            digests[name] = write_file(partial / name, [contents])
        body = {"format": FORMAT, "step": step, **meta, "config": model.architecture.to_dict(),
                "optimizer": {"kind": optimizer.kind, "steps": optimizer.steps}, "training": dict(state or {}),
                "arithmetic": arithmetic(), "source": None if model.source is None else model.source.to_dict(),
                "trainable": None if model.trainable is None else list(model.trainable),
                "base": None if base is None else base.to_dict(), "files": digests}
        write_file(partial / STATE, [json.dumps({**body, "sha256": _seal(body)}, indent=1).encode()])
        sync(partial)
        if final.exists():
            final.rename(_replaced(final))
        partial.rename(final)
        sync(directory)
        shutil.rmtree(_replaced(final), ignore_errors=True)
    except TypeError as error:  # of json: the arrays are checked
        raise SnapshotError(f"snapshot {final}", "must keep plain data beside the arrays", str(error),
                            "Pass numbers, words, lists and dicts as state.") from error
    except OSError as error:
        with suppress(OSError):
            sweep(directory)
        raise SnapshotError(f"snapshot {final}", "must be a place that can be written", error.strerror or str(error),
                            "Make room or choose another directory; earlier snapshots are whole.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def read_state(path: str | Path) -> dict:
    """``state.json`` of a snapshot, after checking every file.

    Raises
    ------
    SnapshotError
        When the snapshot is missing, damaged, truncated or not ours; the message has the reason.
    """
    path = Path(path)
    try:
        state = json.loads((path / STATE).read_bytes())
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{STATE} of another format")
        if state.pop("sha256", None) != _seal(state):
            raise ValueError(f"{STATE} with another checksum than its own")
        for name, digest in state["files"].items():
            if Path(name).name != name:
                raise ValueError(f"a file outside it, {name!r}")
            if os.path.getsize(path / name) != digest["bytes"]:
                raise ValueError(f"{name} of {os.path.getsize(path / name):,} bytes instead of {digest['bytes']:,}")
            if digest_file(path / name) != digest:
                raise ValueError(f"{name} with another checksum")
    except OSError as error:
        raise _refused(path, f"{Path(error.filename or path).name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(path, str(error)) from error
    return state


def load_snapshot(path: str | Path, model: Model | None = None, optimizer=None,
                  architecture: type[Architecture] | None = None,
                  base: str | Path | None = None, mapped: bool = False) -> tuple[Model, dict]:
    """Model and state of a snapshot.

    Parameters
    ----------
    path : str or Path
    model : Model or None
        To load into; it must be of the snapshot's architecture, dtype and compute. None makes one.
    optimizer : or None
        To load into; of the kind that was saved.
    architecture : class or None
        The family, where it is a user's own and `model` is not given.
    base : path or None
        Where the base is now, of a snapshot that has one; None is where it was.
    mapped : bool
        As of `from_pretrained`, of a base.

    Raises
    ------
    SnapshotError
        As `read_state`, or when model, base or optimizer are others; nothing is changed then.
    ConfigError
        When the family is not built in and not given, or is another than that of `architecture` or `model`.
    """
    path = Path(path)
    state = read_state(path)
    given = architecture or (None if model is None else class_of(model.architecture))
    kind = kind_of(state, given)
    try:
        saved = architecture_of(state, given)
        compute = state.get("compute", "float32")
        trained = with_trained(saved.program, state.get("trainable")).trained
        kept = None if state.get("base") is None else Base.restored(state["base"], base)
        if model is None and kept is None:
            model = model_of(saved, dtype=state["dtype"], trainable=state.get("trainable"), compute=compute)
    except FOREIGN as error:
        if is_callers(kind, error):
            raise
        raise _refused(path, str(error)) from error
    if model is None:
        model = kept.model(saved, state["dtype"], state.get("trainable"), mapped)
        model.compute = compute
    if (model.architecture, model.dtype, model.compute) != (saved, state["dtype"], compute):
        differ = [k for k, v in saved.to_dict().items() if getattr(model.architecture, k, None) != v]
        differ += [k for k, v in (("dtype", state["dtype"]), ("compute", compute)) if getattr(model, k) != v]
        raise SnapshotError(f"snapshot {path}", "must be of the model's configuration",
                            f"another {', '.join(differ)}", "Make the model with the snapshot's configuration.")
    if optimizer is not None and optimizer.kind != state["optimizer"]["kind"]:
        raise SnapshotError(f"snapshot {path}", f"must be of the optimizer {optimizer.kind}",
                            state["optimizer"]["kind"], "Make the optimizer that was saved.")
    if (optimizer is not None or kept is not None) and model.program.trained != trained:
        raise SnapshotError(f"snapshot {path}", f"must be of a model that trains {shown(model.trainable)}",
                            f"one that trains {shown(state.get('trainable'))}",
                            "Set model.trainable so before the optimizer is made, or start afresh.")
    if kept is not None:
        kept.check(model)
    marks = [model.torn] if optimizer is None else [model.torn, optimizer.torn]
    with model.torn.restoring(), nullcontext() if optimizer is None else optimizer.torn.restoring():
        wanted = dict([_weights_of(model, state.get("base"))]) | ({} if optimizer is None else {OPTIMIZER: optimizer.stored()})
        for read in (check_arrays, read_arrays):
            for name, arrays in wanted.items():
                try:
                    read(path / name, arrays)
                except BaseException as error:
                    for mark in marks if read is read_arrays else ():
                        mark.reason = f"loading {path}, broken off at {name}"
                    if isinstance(error, DAMAGE):
                        raise _refused(path, f"{name} with {error}") from error
                    raise
    if state.get("source") is not None and kept is None:  # a base knows where it was found
        model.source = Source.of(state["source"])
    if optimizer is not None:
        optimizer.steps = state["optimizer"]["steps"]
    return model, state


def snapshots(directory: str | Path) -> list[Path]:
    """Snapshots in a directory by their names, earliest first, not yet checked."""
    found = [p for p in Path(directory).glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Step of a snapshot by its name."""
    return int(path.name.removeprefix("step-"))


def is_whole(path: str | Path) -> bool:
    """Whether a snapshot would be taken."""
    try:
        read_state(path)
    except SnapshotError:
        return False
    return True


def prune(directory: str | Path, keep: int, also: int | Collection[int] | None = None) -> None:
    """Delete all but the last `keep` snapshots and those of the steps `also`."""
    steps = () if also is None else (also,) if isinstance(also, int) else also
    for path in snapshots(directory)[:-keep]:
        if step_of(path) not in steps:
            with suppress(OSError):  # what cannot be deleted ends no run
                _discard(path)


def set_aside(path: Path) -> None:
    """Rename a damaged snapshot, so that it counts as one no more."""
    number = 0
    while (aside := path.with_name(f"damaged-{number}-{path.name}")).exists():
        number += 1
    path.rename(aside)


def _weights_of(model: Model, base: Mapping | None) -> tuple[str, Mapping]:
    """The file of weights, and the arrays in it."""
    if base is None:
        return MODEL, model.parameters
    left = set(base_names(model))
    return TRAINED, {name: array for name, array in model.parameters.items() if name not in left}


def _refused(path: Path, reason: str) -> SnapshotError:
    return SnapshotError(f"snapshot {path}", "must be a whole snapshot of ours", reason, REMEDY)


def _seal(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _discard(path: Path) -> None:
    """Delete a snapshot; interrupted, it leaves no half of one under its name."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Remove what killed processes left, and put back a snapshot that one was about to replace."""
    for old in directory.glob(".step-*.replaced"):
        final = old.with_name(old.name.removeprefix(".").removesuffix(".replaced"))
        if not final.exists():
            old.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    for left in directory.glob(".step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def _replaced(final: Path) -> Path:
    """Where a snapshot waits until the new one of its step has its name."""
    return final.with_name(f".{final.name}.replaced")
