"""Parts of a step: batches checked, gradients clipped, weights looked at before they are saved."""

from collections.abc import Iterable, Mapping
from sys import float_info

import numpy as np

from cllm import _kernels as kernels
from cllm.errors import ShapeError, TokenError
from cllm.models.model import Model
from cllm.optim import clip_each_grad_norm, clip_grad_norm
from cllm.program.packed import POSITIONS
from cllm.tensors import Part
from cllm.train.settings import TrainSettings

Batch = tuple[np.ndarray, np.ndarray]
Call = dict[str, np.ndarray]  # every feed by name, of one call of an executor


def checked_batches(batches: Iterable[Batch] | Mapping) -> list[Call]:
    """What each call is fed: feeds by name, or pairs of arrays of two axes, at least one; what is in them is checked by the
    executor."""
    if isinstance(batches, Mapping):
        return [{name: array for name, array in batches.items() if array is not None}]
    must, do = "must be pairs of tokens and targets, each of shape B T", "Pass [(tokens, targets)], or every feed by name."
    try:
        found = [(np.asarray(tokens), np.asarray(targets)) for tokens, targets in batches]
    except (TypeError, ValueError) as error:
        raise ShapeError("train_step(batches)", must, str(error), do) from error
    if not found:
        raise ShapeError("train_step(batches)", must, "none", do)
    for pair in found:
        for array in pair:
            if array.ndim != 2 or not array.size:
                raise ShapeError("train_step(batches)", must, f"shape {array.shape}", do)
    return [{"tokens": tokens, "targets": targets} for tokens, targets in found]


def targets_in(calls: list[Call]) -> int | None:
    """Targets that are not -1, of calls on tokens and targets, and positions where rows are packed; None where others are fed.

    Raises
    ------
    TokenError
        When there is none.
    """
    if any(set(call) - {POSITIONS} != {"tokens", "targets"} for call in calls):
        return None
    count = sum(int(np.count_nonzero(np.asarray(call["targets"]) != -1)) for call in calls)
    if not count:
        raise TokenError("train_step(batches)", "must have a target that is not -1", "none", "Leave the step out.")
    return count


def clip(model: Model, settings: TrainSettings) -> float:
    """Clip as the settings say; the norm of all gradients before."""
    if settings.clip_by == "each" and settings.clip is not None:
        return sum(norm**2 for norm in clip_each_grad_norm(model, settings.clip).values()) ** 0.5
    return clip_grad_norm(model, float_info.max if settings.clip is None else settings.clip)


def first_nonfinite(model: Model, optimizer) -> str | None:
    """Name of the first trained parameter, or else array of the optimizer's state, with NaN or infinity in it; None where all
    are finite."""
    trained = {name: model.parameters[name] for name in model.program.trained}
    with model.changed():
        for arrays in (trained, optimizer.arrays()):
            mine = [array.mine if isinstance(array, Part) else array for array in arrays.values()]
            bad = kernels.nonfinite_arrays(kernels.ArrayList(mine))
            if bad:
                return list(arrays)[bad[0]]
    return None
