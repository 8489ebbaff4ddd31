"""Choosing the next token from its scores.

    p     = softmax(logits / temperature), of the `top_k` highest scores and of the fewest that hold `top_p` together
    token = the first whose cumulative probability, highest first, exceeds a uniform number u

u is a raw word of Philox keyed by (seed, number of the token): a text depends on nothing else.
"""

from dataclasses import dataclass

import numpy as np

from cllm.checks import LARGEST_SEED, checked_real, checked_size, keep
from cllm.errors import NonFiniteError


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
        keep(self, "generate", "temperature", checked_real, 0.0, 1e6, "[]")
        if self.top_p is not None:
            keep(self, "generate", "top_p", checked_real, 0.0, 1.0, "[]")
        if self.top_k is not None:
            keep(self, "generate", "top_k", checked_size)
        keep(self, "generate", "seed", checked_size, 0, LARGEST_SEED)

    def __call__(self, logits: np.ndarray, number: int, among: np.ndarray | None = None) -> int:
        """The token number `number`, given an array of V scores; of the ids `among` where not every id may be drawn."""
        scores = np.asarray(logits, np.float64)
        if not np.isfinite(scores).all():
            raise NonFiniteError("generate", "logits must be finite", "NaN or infinity",
                                 "The model's weights are damaged: take an earlier snapshot.")
        order = np.argsort(-(scores if among is None else scores[among]), kind="stable")[:self.top_k]
        order = order if among is None else among[order]
        if self.temperature == 0:
            return int(order[0])
        weights = np.exp((scores[order] - scores[order[0]]) / self.temperature)
        total = np.cumsum(weights)
        if self.top_p is not None:
            total = total[:np.searchsorted(total, self.top_p * total[-1]) + 1]
        word = np.random.Philox(key=np.array([self.seed, number], np.uint64)).random_raw()
        uniform = (word >> 11) * 2.0**-53
        return int(order[min(np.searchsorted(total, uniform * total[-1], side="right"), len(total) - 1)])
