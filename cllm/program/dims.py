"""Shape letters: the one vocabulary in which every array of the project states its shape.

======  =====================================  ======  ==========================================
letter  meaning                                letter  meaning
======  =====================================  ======  ==========================================
B       sequences in the batch at hand         N       rows, B * T
T       time steps in a sequence               C       channels of the residual stream
H       heads                                  D       channels of a head, C / H
F       channels of the feed-forward layer     V       vocabulary
P       rows of the position table             R       rows of the loss that are in work at once
I, O    columns in and out of one layer
======  =====================================  ======  ==========================================

A shape is written as letters with blanks between them, ``"N 3C"``: each part is a number, a letter, or both.
"""

import math
import re
from collections.abc import Mapping

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register

_PART = re.compile(r"(\d*)([A-Z]?)\Z")


def resolve(shape: str, letters: Mapping[str, int]) -> tuple[int, ...]:
    """Turn a shape in letters into lengths.

    Raises
    ------
    ValueError
        Where a part is neither a number, a known letter, nor a number before a letter.
    """
    lengths = []
    for part in shape.split():
        match = _PART.match(part)
        if not match or not part or (match[2] and match[2] not in letters):
            raise ValueError(f"shape {shape!r}: {part!r} is not a number and a letter of {sorted(letters)}")
        lengths.append(int(match[1] or 1) * (letters[match[2]] if match[2] else 1))
    return tuple(lengths)


def elements(shape: str, letters: Mapping[str, int]) -> int:
    """Number of elements of an array of that shape."""
    return math.prod(resolve(shape, letters))


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def batch_letters(batch: int, time: int) -> dict[str, int]:
    """The letters that the batch at hand decides: B, T and N."""
    return {"B": batch, "T": time, "N": batch * time}
