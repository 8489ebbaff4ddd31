"""Gradient descent, with momentum."""

from cllm import _kernels as kernels
from cllm.checks import checked_real
from cllm.models.model import Model
from cllm.optim.base import Optimizer


class SGD(Optimizer):
    """Gradient descent: velocity = momentum * velocity + gradient, p = p - lr * velocity.

    Parameters
    ----------
    model : Model
    lr : float
        May be changed between steps.
    momentum : float
        In [0, 1); 0 keeps no state.
    weight_decay : float
        L2 regularisation: weight_decay * p is added to the gradient of arrays named ``*.weight`` with two or more axes.
    names : as of `Adam`
    """

    def __init__(self, model: Model, lr: float, momentum: float = 0.0, weight_decay: float = 0.0,
                 names: str | tuple[str, ...] | None = None):
        super().__init__(model, lr, weight_decay, names)
        self.momentum = checked_real("SGD(momentum=...)", momentum, high=1.0)

    @property
    def kind(self) -> str:
        return "momentum" if self.momentum else "sgd"

    def _update(self, names, grads, params, state, weight_decay):
        kernels.sgd_update(grads, self.lr, self.momentum, weight_decay, params=params,
                           velocity=state[0] if state else None)
