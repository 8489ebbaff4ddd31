"""Parts of a step: batches checked, gradients clipped, weights looked at before they are saved."""

from collections.abc import Iterable
from sys import float_info

import numpy as np

from cllm import _kernels as kernels
from cllm.errors import ShapeError
from cllm.models.model import Model
from cllm.optim import clip_each_grad_norm, clip_grad_norm
from cllm.train.settings import TrainSettings

Batch = tuple[np.ndarray, np.ndarray]


def checked_batches(batches: Iterable[Batch]) -> list[Batch]:
    """Pairs of arrays of two axes, at least one; what is in them is checked by the executor."""
    must, do = "must be pairs of tokens and targets, each of shape B T", "Pass [(tokens, targets)]."
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
    return found


def clip(model: Model, settings: TrainSettings) -> float:
    """Clip as the settings say; the norm of all gradients before."""
    if settings.clip_by == "each" and settings.clip is not None:
        return sum(norm**2 for norm in clip_each_grad_norm(model, settings.clip).values()) ** 0.5
    return clip_grad_norm(model, float_info.max if settings.clip is None else settings.clip)


def first_nonfinite(model: Model, optimizer) -> str | None:
    """Name of the first parameter, or else array of the optimizer's state, with NaN or infinity in it; None where all are
    finite."""
    with model.changed():
        for arrays in (model.parameters, optimizer.arrays()):
            bad = kernels.nonfinite_arrays(kernels.ArrayList(arrays.values())) if arrays else ()
            if bad:
                return list(arrays)[bad[0]]
    return None
