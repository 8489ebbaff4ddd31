"""Prime numbers and the golden ratio: what the fixed tables are made of."""

from math import ceil, log, sqrt

import numpy as np

GOLDEN_RATIO = (1 + sqrt(5)) / 2


def primes(count: int) -> np.ndarray:
    """The first `count` primes, 2 first: an int64 array, by the sieve of Eratosthenes.

    The n-th prime is below n (ln n + ln ln n) from n = 6 on (Rosser 1941), which bounds the sieve.
    """
    bound = 13 if count < 6 else ceil(count * (log(count) + log(log(count))))
    is_prime = np.ones(bound + 1, bool)
    is_prime[:2] = False
    for n in range(2, int(sqrt(bound)) + 1):
        if is_prime[n]:
            is_prime[n * n::n] = False
    return np.flatnonzero(is_prime)[:count]
