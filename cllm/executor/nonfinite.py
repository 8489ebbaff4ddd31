"""NaN and infinity in a loss or in gradients: an error that names the first place."""

from math import isfinite

import numpy as np

from cllm import _kernels as kernels
from cllm.errors import NonFiniteError
from cllm.executor.forward_runs import ForwardRuns
from cllm.executor.groups import Groups
from cllm.executor.updating import SKIP
from cllm.models.model import Model
from cllm.tensors import pieces_of

DIVERGED = "The model has diverged: take an earlier snapshot, and lower the learning rate."


def check_loss(where: str, loss: float, model: Model, forward: ForwardRuns, groups: Groups, do: str = SKIP) -> None:
    """Refuse a loss that is not finite. Forward is then run once more, value by value, to name the first that is not."""
    if not isfinite(loss):
        place = next((found for found in groups.tell(_first_place(model, forward)) if found is not None), "loss")
        raise NonFiniteError(f"{where}, {place}", "must be finite", f"loss {loss}", do)


def check_gradients(where: str, model: Model) -> None:
    """Refuse gradients that are not finite, and name the one that backward makes first."""
    bad = kernels.nonfinite_arrays(model.gradient_list)
    if bad:
        name = list(model.gradients)[bad[-1]]
        raise NonFiniteError(f"{where}, gradient of {name}", "must be finite", "NaN or infinity, first in backward there",
                             SKIP)


def _first_place(model: Model, forward: ForwardRuns) -> str | None:
    for name, parameter in model.parameters.items():
        if not all(np.isfinite(piece).all() for piece in pieces_of(parameter)):
            return f"parameter {name}"
    for name, value in forward.values():
        if not np.isfinite(value).all():
            return f"value {name}"
    return None
