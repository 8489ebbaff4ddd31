"""Rotation of queries and keys by their position (Su et al. 2021): its settings and its tables, made in float64.

Channel m of the first R turns with channel m + R/2 by the angle position * f_m, f_m = theta^(-2m/R), m = 0 .. R/2-1.
Longer contexts than a model was trained on slow the rotation down:

    linear   f / factor                                                               (Chen et al. 2023)
    llama3   n = original f / 2 pi, s = clip((n - low) / (high - low), 0, 1):  f (s + (1 - s) / factor)   (Llama 3.1)
    yarn     at(t) = R ln(original / (2 pi t)) / (2 ln theta), r = the ramp of m from at(beta_fast) to at(beta_slow):
             f (1 - r) + f r / factor; cos and sin times 0.1 ln(factor) + 1           (Peng et al. 2023)
"""

from dataclasses import dataclass
from math import ceil, floor, log, pi

import numpy as np

from cllm.errors import ConfigError

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class Rope:
    """Settings of a rotation.

    Parameters
    ----------
    theta : float
    kind : {"default", "linear", "llama3", "yarn"}
    factor, low, high, beta_fast, beta_slow : float
        As in the formulas above.
    original : int
        Positions that the model was trained on.
    attention_factor : float or None
        Of cos and sin under yarn; None is 0.1 ln(factor) + 1.
    truncate : bool
        Whether yarn's ramp begins and ends at whole channels.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ConfigError("Rope(kind=...)", f"must be one of {', '.join(KINDS)}", repr(self.kind), "Choose one of these.")

    def frequencies(self, channels: int) -> np.ndarray:
        """Radians for a step of one position, of each of R/2 pairs of channels: a float64 array."""
        pair = np.arange(channels // 2, dtype=float)
        f = self.theta ** (-2 * pair / channels)
        if self.kind == "linear":
            return f / self.factor
        if self.kind == "llama3":
            kept = np.clip((self.original * f / (2 * pi) - self.low) / (self.high - self.low), 0, 1)
            return f * (kept + (1 - kept) / self.factor)
        if self.kind == "yarn":
            begin, end = (channels * log(self.original / (2 * pi * turns)) / (2 * log(self.theta))
                          for turns in (self.beta_fast, self.beta_slow))
            if self.truncate:
                begin, end = floor(begin), ceil(end)
            begin, end = max(begin, 0), min(end, channels - 1)
            ramp = np.clip((pair - begin) / (end - begin if end > begin else 0.001), 0, 1)
            return f * (1 - ramp) + f / self.factor * ramp
        return f

    @property
    def length(self) -> float:
        """What cos and sin are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        return 0.1 * log(self.factor) + 1 if self.attention_factor is None else self.attention_factor

    def tables(self, positions: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin for each position and pair of channels: float64 arrays of shape P R/2."""
        angle = np.arange(positions, dtype=float)[:, None] * self.frequencies(channels)
        return np.cos(angle) * self.length, np.sin(angle) * self.length
