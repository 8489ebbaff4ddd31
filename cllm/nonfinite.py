"""NaN and infinity in a loss or in gradients: an error that names the first place."""

from collections.abc import Mapping

import numpy as np

from cllm import _kernels as kernels
from cllm.errors import NonFiniteError
from cllm.forward_runs import ForwardRuns

Arrays = Mapping[str, np.ndarray]


def check_loss(where: str, loss: float, parameters: Arrays, forward: ForwardRuns) -> None:
    """Refuse a loss that is not finite. Forward is then run once more, value by value, to name the first that is not."""
    if not np.isfinite(loss):
        _refuse(f"{where}, {_first_place(parameters, forward)}", f"loss {loss}")


def check_gradients(where: str, gradients: Arrays) -> None:
    """Refuse gradients that are not finite, and name the one that backward makes first."""
    bad = [name for name, gradient in gradients.items() if kernels.first_nonfinite(gradient.reshape(-1)) >= 0]
    if bad:
        _refuse(f"{where}, gradient of {bad[-1]}", "NaN or infinity, first in backward there")


def _first_place(parameters: Arrays, forward: ForwardRuns) -> str:
    for name, parameter in parameters.items():
        if kernels.first_nonfinite(parameter.reshape(-1)) >= 0:
            return f"parameter {name}"
    for name, value in forward.values():
        if not np.isfinite(value).all():
            return f"value {name}"
    return "loss"


def _refuse(where: str, got: str) -> None:
    raise NonFiniteError(where, "must be finite", got,
                         "Call model.zero_grad() and skip the batch, or lower the learning rate.")
