"""Adam and AdamW."""

from cllm import _kernels as kernels
from cllm.checks import checked_real
from cllm.errors import ConfigError
from cllm.models.model import Model
from cllm.optim.base import Optimizer


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), with L2 regularisation as an option.

    With g the gradient, plus weight_decay * p for arrays named ``*.weight`` with two or more axes, and t the number of
    the step from 1: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
    p = p - lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps).

    Parameters
    ----------
    model : Model
    lr : float
        May be changed between steps.
    betas : pair of float
        Both in [0, 1).
    eps, weight_decay : float
    names : str, tuple of str, or None
        Patterns of the parameters to move ("*emb.weight"); None is all.
    """

    def __init__(self, model: Model, lr: float = 3e-4, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, names: str | tuple[str, ...] | None = None):
        super().__init__(model, lr, weight_decay, names)
        kind = type(self).__name__
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ConfigError(f"{kind}(betas=...)", "must be two numbers", repr(betas), "Pass (beta1, beta2).")
        self.betas = tuple(checked_real(f"{kind}(betas=...)", b, high=1.0) for b in betas)
        self.eps = checked_real(f"{kind}(eps=...)", eps)

    @property
    def kind(self) -> str:
        return "adam" if self.couples_decay else "adamw"

    def _update(self, names, grads, params, state, weight_decay):
        kernels.adamw_update(grads, self.lr, *self.betas, self.eps, weight_decay, self.couples_decay, self.steps,
                             params=params, m=state[0], v=state[1])


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): p also loses lr * weight_decay * p.

    Decay applies to arrays named ``*.weight`` with two or more axes. Parameters are those of `Adam`.

    Attributes
    ----------
    state : Mapping
        ``name -> (m, v)``, arrays of the parameter's shape.
    """

    couples_decay = False

    def __init__(self, model: Model, lr: float = 3e-4, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 weight_decay: float = 0.1, names: str | tuple[str, ...] | None = None):
        super().__init__(model, lr, betas, eps, weight_decay, names)
