"""An independent witness of the peak: a pattern that a step overwrites, and how high it did."""

import numpy as np

from cllm.arrays import aligned_empty
from cllm.errors import BudgetError
from cllm.program.dims import aligned

# Watched below the end of the slab in each step; a smaller slab is watched whole. Laying the pattern must cost a step
# nothing: 1 MiB was a twentieth of a tiny model's, and pushed its arrays out of the second level cache.
WINDOW = 1 << 16
GUARD = 4096  # bytes beyond the end: nothing may reach them


class Slab:
    """The arena's bytes, with a guard behind them and a pattern in both.

    Every page is touched when the slab is made, so that no later step can run out of memory for it.
    """

    def __init__(self, nbytes: int):
        self._nbytes = nbytes
        try:
            self._bytes = aligned_empty(nbytes + GUARD, np.uint8)
        except MemoryError as error:
            raise BudgetError("Executor", "the machine must have room for the arena", f"an arena of {nbytes:,} bytes",
                              "Plan with MemoryBudget('auto'), or take a smaller micro_batch.") from error
        self._start = max(0, nbytes - WINDOW)
        generator = np.random.default_rng(nbytes)
        self._pattern = generator.integers(0, 256, nbytes + GUARD - self._start, np.uint8)
        self._bytes[:self._start] = 0xA5
        self.mark()

    @property
    def bytes(self) -> np.ndarray:
        """The usable bytes."""
        return self._bytes[:self._nbytes]

    def mark(self) -> None:
        """Lay the pattern over the window and the guard."""
        self._bytes[self._start:] = self._pattern

    def high_water_bytes(self) -> int:
        """The highest byte changed since `mark`, rounded up to `ALIGNMENT`; the window's start if none in it was."""
        changed = self._bytes[self._start:] != self._pattern
        if not changed.any():
            return self._start
        return aligned(self._start + len(changed) - int(np.argmax(changed[::-1])))
