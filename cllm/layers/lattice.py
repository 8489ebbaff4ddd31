"""The lattice of crystalline attention: where a token stands.

Token t has the coordinates (r cos a, r sin a, z) with r = sqrt(t), a = 2 pi t / phi^2, z = ln(p + 1), phi the golden
ratio and p the t-th prime (2 for token 0). Its symmetry group is t mod 12.
"""

from math import pi

import numpy as np

from cllm.layers.primes import GOLDEN_RATIO, primes


def lattice_coordinates(vocabulary: int) -> np.ndarray:
    """Coordinates of every token: a float64 array of shape V 3."""
    token = np.arange(vocabulary, dtype=float)
    radius, angle = np.sqrt(token), 2 * pi * token / GOLDEN_RATIO ** 2
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.log(primes(vocabulary) + 1.0)], axis=1)
