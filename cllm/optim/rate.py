"""Learning rates as pure functions of the step: a resumed run sees the rates of the straight one.

    warm      lr (step + 1) / warmup                                     while step < warmup
    t         min(1, (step - warmup) / max(1, total - warmup))           after that
    cosine    min_lr + (lr - min_lr) (1 + cos(pi t)) / 2                 (Loshchilov and Hutter 2017)
    linear    lr + (min_lr - lr) t
    constant  lr
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, inf, pi

from cllm.checks import checked_real, checked_size, checked_word, keep

SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "cosine": lambda lr, min_lr, t: min_lr + (lr - min_lr) * (1 + cos(pi * t)) / 2,
    "linear": lambda lr, min_lr, t: lr + (min_lr - lr) * t,
    "constant": lambda lr, min_lr, t: lr,
}


@dataclass(frozen=True, slots=True)
class Rate:
    """The learning rate of each step, counted from 0: ``Rate(1e-3, total=1000, warmup=50)(step)``.

    Parameters
    ----------
    lr : float
        The highest rate, reached at the end of the warmup.
    total : int
        Step at which the fall ends; afterwards the rate stays.
    warmup : int
        Steps of the rise.
    min_lr : float
        The floor, from 0 to `lr`.
    shape : {"cosine", "linear", "constant"}

    Raises
    ------
    ConfigError
        When a value is outside what it may be.
    """

    lr: float
    total: int
    warmup: int = 0
    min_lr: float = 0.0
    shape: str = "cosine"

    def __post_init__(self):
        keep(self, "Rate", "lr", checked_real, 0.0, inf)
        keep(self, "Rate", "min_lr", checked_real, 0.0, self.lr, "[]")
        keep(self, "Rate", "total", checked_size, 0)
        keep(self, "Rate", "warmup", checked_size, 0)
        keep(self, "Rate", "shape", checked_word, SHAPES)

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        t = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return SHAPES[self.shape](self.lr, self.min_lr, t)
