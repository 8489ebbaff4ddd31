"""What tuning will take, before it starts: what is frozen, trained and kept, and the bytes of each part."""

from pathlib import Path

import numpy as np

from cllm.models.adapted import Adapted
from cllm.models.architecture import record_of
from cllm.models.model import Model
from cllm.program.stored import forms_of
from cllm.train import Trainer

MOST_SITES = 6  # listed of what is kept


def plan_in_words(trainer: Trainer, place: Path) -> str:
    """The plan of a run's first batch, for people to read.

    Parameters
    ----------
    trainer : Trainer
    place : Path
        Where the weights are from.
    """
    model, executor = trainer.model, trainer.executors.of(*trainer.source.sizes)
    memory = executor.memory
    parts = {"weights": memory.parameter_bytes, "gradients": memory.gradient_bytes,
             f"state of {trainer.optimizer.kind}": memory.optimizer_bytes, "batch": memory.batch_bytes,
             "tables": memory.table_bytes, "arena": memory.arena_bytes}
    takes = ", ".join(f"{name} {_mb(nbytes)}" for name, nbytes in parts.items())
    told = [("model", f"{place}: {_model(model)}"), ("trained", _trained(model)), ("frozen", _frozen(model)),
            ("kept", _kept(memory)), *(("plan", line) for line in executor.plan.table().splitlines()),
            ("takes", f"{takes}: {_mb(memory.total_bytes)} MB")]
    return "\n".join(f"{name:8} {line}" for name, line in told)


def _model(model: Model) -> str:
    architecture = model.architecture
    base = architecture.base if isinstance(architecture, Adapted) else architecture
    adapters = ("" if base is architecture else f", adapters of rank {architecture.rank} on {', '.join(architecture.targets)}, "
                f"scaled by {architecture.scale:g}")
    return f"{record_of(base)['family']}, {base.program.n_blocks} blocks{adapters}"


def _trained(model: Model) -> str:
    trained = model.program.trained
    patterns = "everything" if model.trainable is None else ", ".join(model.trainable)
    return f"{_count(model, trained)} parameters in {len(trained)} arrays: {patterns}"


def _frozen(model: Model) -> str:
    frozen = sorted(model.program.frozen)
    if not frozen:
        return "nothing"
    mapped = sum(model.parameters[name].nbytes for name in frozen if _is_mapped(model.parameters[name]))
    nbytes = sum(model.parameters[name].nbytes for name in frozen)
    kinds = dict.fromkeys(form.kinds for form in forms_of(model.program).values())
    told = f"{_count(model, frozen)} parameters, {_mb(nbytes)} MB, {_mb(mapped)} of them mapped from the file"
    return told + (f", in {', '.join(kinds)}" if kinds else "")


def _kept(memory) -> str:
    """Values that are alive from forward to backward at the peak, by site, the largest first."""
    kept = [(site, count, nbytes) for site, kind, count, nbytes in memory.at_peak() if kind in ("kept", "packed")]
    named = ", ".join(f"{site} of {count} blocks {_mb(nbytes)}" if count > 1 else f"{site} {_mb(nbytes)}"
                      for site, count, nbytes in kept[:MOST_SITES])
    rest = f", and {len(kept) - MOST_SITES} more" if len(kept) > MOST_SITES else ""
    return f"{_mb(sum(nbytes for *_, nbytes in kept))} MB at the peak: {named or 'nothing'}{rest}"


def _is_mapped(array: np.ndarray) -> bool:
    """Whether an array's bytes are a file's; what is mapped here is read-only."""
    return not array.flags.writeable


def _count(model: Model, names) -> str:
    return f"{sum(model.parameters[name].size for name in names):,}"


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f}"
