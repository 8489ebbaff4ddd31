"""Fixed tables of positions: one row of C channels for each position, in float64.

With f = i // 2 + 1 for channel i, even channels hold the cosine, odd ones the sine (sinusoidal: the other way round):

    sinusoidal   angle = pos / 10000^(2 (i // 2) / C)                                 (Vaswani et al. 2017)
    spiral       angle = f pos 2 pi / phi^2,           radius = 1 + 0.1 sqrt(pos)
    clock        angle = f 2 pi (pos mod 12) / 12,     radius = 1 + 0.2 ln(pos + 1)
    prime        angle = f 2 pi (p mod 1000) / 1000,   radius = 0.5 + 0.5 ln p / ln p_last

with phi the golden ratio and p the pos-th prime (2 at position 0). The rows of the last three are then divided by their
length.
"""

from math import pi

import numpy as np

from cllm.layers.primes import GOLDEN_RATIO, primes


def position_table(kind: str, rows: int, channels: int) -> np.ndarray:
    """The table of that kind.

    Parameters
    ----------
    kind : {"sinusoidal", "spiral", "clock", "prime"}
    rows, channels : int
        P and C.

    Returns
    -------
    float64 array of shape P C
    """
    position = np.arange(rows, dtype=float)[:, None]
    channel = np.arange(channels)
    even, f = channel % 2 == 0, channel // 2 + 1.0
    if kind == "sinusoidal":
        angle = position / 10000.0 ** (2 * (channel // 2) / channels)
        return np.where(even, np.sin(angle), np.cos(angle))
    angle, radius = _POLAR[kind](position)
    table = np.where(even, np.cos(f * angle), np.sin(f * angle)) * radius
    return table / np.sqrt((table ** 2).sum(axis=1, keepdims=True))


def _spiral(position):
    return position * 2 * pi / GOLDEN_RATIO ** 2, 1 + 0.1 * np.sqrt(position)


def _clock(position):
    return 2 * pi * (position % 12) / 12, 1 + 0.2 * np.log(position + 1)


def _prime(position):
    p = primes(len(position))[:, None]
    return 2 * pi * (p % 1000) / 1000, 0.5 + 0.5 * np.log(p) / np.log(p[-1])


_POLAR = {"spiral": _spiral, "clock": _clock, "prime": _prime}
