"""Learning rates as pure functions of the step: a resumed run sees the rates of the straight one.

    warm      lr (step + 1) / warmup                                     while step < warmup
    t         min(1, (step - warmup) / max(1, total - warmup))           after that
    cosine    min_lr + (lr - min_lr) (1 + cos(pi t)) / 2                 (Loshchilov and Hutter 2017)
    linear    lr + (min_lr - lr) t
    constant  lr
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, isfinite, pi

from cllm.checks import checked_size
from cllm.errors import ConfigError

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
        for name, value, most in (("lr", self.lr, float("inf")), ("min_lr", self.min_lr, self.lr)):
            real = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
            if not real or not 0 <= value <= most:
                raise ConfigError(f"Rate({name}=...)", f"must be a finite number from 0 to {most}", repr(value),
                                  "Pass a float in that range.")
        checked_size("Rate(total=...)", self.total, 0)
        checked_size("Rate(warmup=...)", self.warmup, 0)
        if self.shape not in SHAPES:
            raise ConfigError("Rate(shape=...)", f"must be one of {', '.join(SHAPES)}", repr(self.shape),
                              "Choose one of these.")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        t = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return SHAPES[self.shape](self.lr, self.min_lr, t)
