"""Choosing the next token from its scores.

    p     = softmax(logits / temperature), of the `top_k` highest scores and of the fewest that hold `top_p` together
    token = the first whose cumulative probability, highest first, exceeds a uniform number u

u is a raw word of Philox keyed by (seed, number of the token): a text depends on nothing else.
"""

from dataclasses import dataclass
from math import isfinite

import numpy as np

from cllm.checks import checked_size
from cllm.errors import ConfigError, NonFiniteError


@dataclass(frozen=True, slots=True)
class Choice:
    """How tokens are drawn.

    Parameters
    ----------
    temperature : float
        0 takes the highest score, of equals the lowest id.
    top_k : int or None
        Draw from so many of the highest scores only.
    top_p : float or None
        Draw from the fewest highest scores that together have at least this probability (Holtzman et al. 2020).
    seed : int

    Raises
    ------
    ConfigError
        When a value is outside what it may be.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self):
        for name, value, most in (("temperature", self.temperature, 1e6), ("top_p", self.top_p, 1.0)):
            real = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
            if value is not None and (not real or not 0 <= value <= most) or value is None and name == "temperature":
                raise ConfigError(f"generate({name}=...)", f"must be a number from 0 to {most:g}", repr(value),
                                  "Pass a float in that range.")
        if self.top_k is not None:
            checked_size("generate(top_k=...)", self.top_k)
        checked_size("generate(seed=...)", self.seed, 0)

    def __call__(self, logits: np.ndarray, number: int) -> int:
        """The token number `number`, given an array of V scores."""
        scores = np.asarray(logits, np.float64)
        if not np.isfinite(scores).all():
            raise NonFiniteError("generate", "logits must be finite", "NaN or infinity",
                                 "The model's weights are damaged: take an earlier snapshot.")
        order = np.argsort(-scores, kind="stable")[:self.top_k]
        if self.temperature == 0:
            return int(order[0])
        weights = np.exp((scores[order] - scores[order[0]]) / self.temperature)
        total = np.cumsum(weights)
        if self.top_p is not None:
            total = total[:np.searchsorted(total, self.top_p * total[-1]) + 1]
        word = np.random.Philox(key=np.array([self.seed, number], np.uint64)).random_raw()
        uniform = (word >> 11) * 2.0**-53
        return int(order[min(np.searchsorted(total, uniform * total[-1], side="right"), len(total) - 1)])
