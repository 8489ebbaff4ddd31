"""Clipping of gradients: by the norm of all together, or each tensor by its own (Pascanu et al. 2013)."""

from math import isfinite, sqrt

import numpy as np

from cllm import _kernels as kernels
from cllm.checks import checked_real
from cllm.errors import NonFiniteError
from cllm.models.model import Model
from cllm.optim.checks import checked_model


def clip_grad_norm(model: Model, max_norm: float) -> float:
    """Scale all gradients by min(1, max_norm / norm).

    Returns
    -------
    float
        The Euclidean norm of all gradients together, before.

    Raises
    ------
    NonFiniteError
        When the norm is NaN or infinite; gradients are unchanged.
    """
    max_norm = checked_real("clip_grad_norm(max_norm)", max_norm)
    with checked_model("clip_grad_norm", model).changed():
        squares = _squares("clip_grad_norm", model)
        norm = sqrt(sum(squares))
        if norm > max_norm:
            kernels.scale_in_place(np.full(len(squares), max_norm / norm), x=model.gradient_list)
    return norm


def clip_each_grad_norm(model: Model, max_norm: float) -> dict[str, float]:
    """Scale each gradient by min(1, max_norm / its own norm).

    Returns
    -------
    dict
        The norm of each gradient by name, before; errors as `clip_grad_norm`.
    """
    max_norm = checked_real("clip_each_grad_norm(max_norm)", max_norm)
    with checked_model("clip_each_grad_norm", model).changed():
        norms = [sqrt(square) for square in _squares("clip_each_grad_norm", model)]
        factors = np.array([max_norm / norm if norm > max_norm else 1.0 for norm in norms])
        kernels.scale_in_place(factors, x=model.gradient_list)
    return dict(zip(model.gradients, norms, strict=True))


def _squares(where: str, model: Model) -> list[float]:
    """The sum of squares of each gradient; refused unless all are finite."""
    sums = np.empty(len(model.gradients))
    kernels.sum_of_squares(model.gradient_list, out=sums)
    squares = sums.tolist()
    if not isfinite(sum(squares)):
        bad = [name for name, square in zip(model.gradients, squares, strict=True) if not isfinite(square)]
        raise NonFiniteError(where, "the norm of the gradients must be finite",
                             f"NaN, infinity or overflow in the gradient of {bad[-1] if bad else 'all together'}",
                             "Call model.zero_grad() and skip the batch, or lower the learning rate.")
    return squares
