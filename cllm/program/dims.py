"""Shape letters: the one vocabulary in which every array of the project states its shape.

======  =====================================  ======  ==========================================
letter  meaning                                letter  meaning
======  =====================================  ======  ==========================================
B       sequences in the batch at hand         N       rows, B * T, or B where no T occurs
T       time steps in a sequence               C       channels of the residual stream
H       heads                                  D       channels of a head, C / H
F       channels of the feed-forward layer     V       vocabulary
P       rows of the position table             R       rows of the loss that are in work at once
I, O    columns in and out of one layer
======  =====================================  ======  ==========================================

A shape is written as letters with blanks between them, ``"N 3C"``: each part is a product of a number and letters.

N is rows of whatever kind: a layer that declares "N C" can be wired to "B C", one row a sequence, or to "B 16 C", sixteen of
them; and "N C" and "B T C" are the same array.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache

BATCH_LETTERS = ("B", "T", "N", "R")  # what the batch at hand decides; all other letters are a layer's own
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
NARROW = "bfloat16"  # dtype of a value in upper halves of float32, an array of uint16
UNITS = "bfloat16:units"
UNIT = 32  # k that are summed as one there, see cllm/kernels/units.pxi
COMPUTES = ("float32", NARROW, UNITS)  # how products are computed, by the number by which kernels know it

_PART = re.compile(r"(\d*)([A-Z]*)\Z")


def resolve(shape: str, letters: Mapping[str, int]) -> tuple[int, ...]:
    """Turn a shape in letters into lengths.

    Raises
    ------
    ValueError
        Where a part is neither a number, known letters, nor a number before known letters.
    """
    lengths = []
    for part, number, named in _parts(shape):
        try:
            for letter in named:
                number *= letters[letter]
        except (KeyError, TypeError):  # a letter is unknown, or there are none to go through
            raise ValueError(f"shape {shape!r}: {part!r} is not a number and letters of {sorted(letters)}") from None
        lengths.append(number)
    return tuple(lengths)


@lru_cache(maxsize=4096)
def _parts(shape: str) -> tuple[tuple[str, int, str | None], ...]:
    """Each part, its number, and its letters, None where it is none: planning asks for the same shapes again and again."""
    matches = ((part, _PART.match(part)) for part in shape.split())
    return tuple((part, int(match[1] or 1), match[2]) if match else (part, 1, None) for part, match in matches)


def settle(shape: str, own: Mapping[str, int]) -> str:
    """The shape with a layer's own letters as numbers: ``"N 2F"`` becomes ``"N 4096"``; those of the batch stay.

    Raises
    ------
    ValueError
        As `resolve`.
    """
    parts = []
    for part in shape.split():
        match = _PART.match(part)
        if match and match[2] in BATCH_LETTERS:  # alone in its part
            parts.append(("" if int(match[1] or 1) == 1 else str(int(match[1]))) + match[2])
        else:
            parts.append(str(resolve(part, own)[0]))
    return " ".join(parts)


def joined(shape: str) -> str:
    """The shape with B and T at its beginning as N: the same elements in the same order."""
    return f"N{shape[3:]}" if shape.split()[:2] == ["B", "T"] else shape


def product(shape: str) -> str:
    """One part that is as long as all of them: ``"16B"`` for ``"B 16"``."""
    matches = [_PART.match(part) for part in shape.split()]
    number = math.prod(int(match[1] or 1) for match in matches)
    return ("" if number == 1 else str(number)) + "".join(match[2] for match in matches)


def with_rows(shape: str, rows: str) -> str:
    """The shape with other axes where it says N."""
    return " ".join(rows if part == "N" else part for part in shape.split())


def elements(shape: str, letters: Mapping[str, int]) -> int:
    """Number of elements of an array of that shape."""
    return math.prod(resolve(shape, letters))


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def batch_letters(batch: int, time: int | None) -> dict[str, int]:
    """The letters that the batch at hand decides: B, T and N; without time there is no T, and a row is a sequence."""
    return {"B": batch, "N": batch} if time is None else {"B": batch, "T": time, "N": batch * time}
