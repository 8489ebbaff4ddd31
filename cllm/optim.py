"""Optimizers over a model's parameters, and clipping by the global norm."""

from collections.abc import Mapping
from math import isfinite, sqrt

import numpy as np

from cllm import _kernels as kernels
from cllm.arrays import aligned_zeros
from cllm.errors import ConfigError, NonFiniteError, OptimizerError
from cllm.models.gpt import GPT
from cllm.program import Parameter
from cllm.workload import OPTIMIZER_STATES


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    With g the gradient and t the number of the step from 1: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
    p = p - lr * (weight_decay * p + m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)). Decay applies to arrays named
    ``*.weight`` with two or more axes.

    Parameters
    ----------
    model : GPT
    lr : float
        May be changed between steps.
    betas : pair of float
        Both in [0, 1).
    eps, weight_decay : float

    Attributes
    ----------
    state : dict
        ``name -> (m, v)``, arrays of the parameter's shape.
    steps : int
        Steps taken.
    """

    def __init__(self, model: GPT, lr: float = 3e-4, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 weight_decay: float = 0.1):
        self.lr = _real("AdamW(lr=...)", lr)
        self.betas = tuple(_real("AdamW(betas=...)", b, below=1.0) for b in betas)
        if len(self.betas) != 2:
            raise ConfigError("AdamW(betas=...)", "must be two numbers", str(len(self.betas)), "Pass (beta1, beta2).")
        self.eps = _real("AdamW(eps=...)", eps)
        self.weight_decay = _real("AdamW(weight_decay=...)", weight_decay)
        self.steps = 0
        self._model = model
        self.state = {n: (aligned_zeros(p.shape, p.dtype), aligned_zeros(p.shape, p.dtype))
                      for n, p in model.parameters.items()}

    def step(self) -> None:
        """Update every parameter from its gradient; the gradients stay as they are.

        Raises
        ------
        OptimizerError
            When the executor planned memory for an optimizer of smaller state.
        """
        _refuse_unplanned(self._model, "adamw")
        self.steps += 1
        model = self._model
        for name, parameter in model.program.parameters.items():
            m, v = self.state[name]
            kernels.adamw_update(
                model.gradients[name].reshape(-1), _real("AdamW.lr", self.lr), *self.betas, self.eps,
                self.weight_decay if parameter.decays else 0.0, self.steps,
                param=model.parameters[name].reshape(-1), m=m.reshape(-1), v=v.reshape(-1))


class SGD:
    """Gradient descent: velocity = momentum * velocity + gradient, p = p - lr * velocity.

    Parameters
    ----------
    model : GPT
    lr : float
        May be changed between steps.
    momentum : float
        In [0, 1); 0 keeps no state.
    """

    def __init__(self, model: GPT, lr: float, momentum: float = 0.0):
        self.lr = _real("SGD(lr=...)", lr)
        self.momentum = _real("SGD(momentum=...)", momentum, below=1.0)
        self._model = model
        self.state = {n: aligned_zeros(p.shape, p.dtype) for n, p in model.parameters.items()} if self.momentum else {}

    def step(self) -> None:
        """Update every parameter from its gradient; errors as `AdamW.step`."""
        _refuse_unplanned(self._model, "momentum" if self.momentum else "sgd")
        for name, parameter in self._model.parameters.items():
            velocity = self.state[name].reshape(-1) if self.momentum else None
            kernels.sgd_update(self._model.gradients[name].reshape(-1), _real("SGD.lr", self.lr), self.momentum,
                               param=parameter.reshape(-1), velocity=velocity)


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
    max_norm = _real("clip_grad_norm(max_norm)", max_norm)
    norm = sqrt(sum(kernels.sum_of_squares(g.reshape(-1)) for g in model.gradients.values()))
    if not isfinite(norm):
        raise NonFiniteError("clip_grad_norm", "the norm of the gradients must be finite", str(norm),
                             "Call model.zero_grad() and skip the batch, or lower the learning rate.")
    if norm > max_norm:
        for gradient in model.gradients.values():
            kernels.scale_in_place(max_norm / norm, x=gradient.reshape(-1))
    return norm




def _refuse_unplanned(model: GPT, optimizer: str) -> None:
    planned = model.planned_optimizer
    if planned is not None and OPTIMIZER_STATES[optimizer] > OPTIMIZER_STATES[planned]:
        raise OptimizerError(f"{optimizer}.step()", f"must need no more state than {planned!r}, which the executor planned",
                             f"{OPTIMIZER_STATES[optimizer]} arrays for each parameter",
                             f"Make the executor with optimizer={optimizer!r}.")


def _real(where: str, value, below: float = np.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 <= value < below:
        raise ConfigError(where, f"must be a number from 0 to below {below}", repr(value), "Pass a float in that range.")
    return float(value)
