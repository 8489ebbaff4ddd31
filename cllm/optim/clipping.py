"""Clipping of gradients: by the norm of all together, or each tensor by its own (Pascanu et al. 2013)."""

from math import isfinite, sqrt

from cllm import _kernels as kernels
from cllm.errors import NonFiniteError
from cllm.models.gpt import GPT
from cllm.optim.checks import checked_model, real


def clip_grad_norm(model: GPT, max_norm: float) -> float:
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
    max_norm, squares = _squares("clip_grad_norm", model, max_norm)
    norm = sqrt(sum(squares.values()))
    if norm > max_norm:
        for gradient in model.gradients.values():
            kernels.scale_in_place(max_norm / norm, x=gradient.reshape(-1))
    return norm


def clip_each_grad_norm(model: GPT, max_norm: float) -> dict[str, float]:
    """Scale each gradient by min(1, max_norm / its own norm).

    Returns
    -------
    dict
        The norm of each gradient by name, before; errors as `clip_grad_norm`.
    """
    max_norm, squares = _squares("clip_each_grad_norm", model, max_norm)
    norms = {name: sqrt(square) for name, square in squares.items()}
    for name, norm in norms.items():
        if norm > max_norm:
            kernels.scale_in_place(max_norm / norm, x=model.gradients[name].reshape(-1))
    return norms


def _squares(where: str, model: GPT, max_norm: float) -> tuple[float, dict[str, float]]:
    """The checked limit, and the sum of squares of each gradient; refused unless all are finite."""
    max_norm = real(f"{where}(max_norm)", max_norm)
    squares = {n: kernels.sum_of_squares(g.reshape(-1)) for n, g in checked_model(where, model).gradients.items()}
    bad = [name for name, square in squares.items() if not isfinite(square)]
    if bad or not isfinite(sum(squares.values())):
        raise NonFiniteError(where, "the norm of the gradients must be finite",
                             f"NaN, infinity or overflow in the gradient of {bad[-1] if bad else 'all together'}",
                             "Call model.zero_grad() and skip the batch, or lower the learning rate.")
    return max_norm, squares
