"""How far one set of gradients is from another: relative error and cosine, from three sums in float64.

With r the exact gradient and g the other, over all elements of one parameter or of all of them:

    relative error = |g - r| / |r|          cosine = (g . r) / (|g| |r|)

The sums of parts add up to the sums of the whole, so figures by parameter and in all come from one pass.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

PIECE = 1 << 16  # elements widened to float64 at a time: half a MiB for each of three arrays, which fits L2


@dataclass(frozen=True, slots=True)
class Closeness:
    """Sums over the elements of a pair of gradients; those of two parts are added with ``+``.

    Attributes
    ----------
    difference, reference, other : float
        Sums of squares of g - r, of r, and of g.
    product : float
        Sum of g r.
    """

    difference: float = 0.0
    reference: float = 0.0
    other: float = 0.0
    product: float = 0.0

    def __add__(self, part: "Closeness") -> "Closeness":
        return Closeness(self.difference + part.difference, self.reference + part.reference, self.other + part.other,
                         self.product + part.product)

    @property
    def relative_error(self) -> float | None:
        """|g - r| / |r|; 0 where both are zero, None where only r is."""
        if self.reference == 0.0:
            return 0.0 if self.difference == 0.0 else None
        return sqrt(self.difference / self.reference)

    @property
    def cosine(self) -> float | None:
        """Of the angle between g and r; None where either is zero."""
        lengths = sqrt(self.reference) * sqrt(self.other)
        return self.product / lengths if lengths else None

    def to_dict(self) -> dict[str, float | None]:
        """Both figures by name."""
        return {"relative_error": self.relative_error, "cosine": self.cosine}


def closeness(reference: np.ndarray, other: np.ndarray) -> Closeness:
    """The sums of a pair of arrays of the same shape; no copy of either is made.

    Parameters
    ----------
    reference, other : contiguous arrays of floats

    Raises
    ------
    ValueError
        When the shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"the gradients' shapes differ: {reference.shape} and {other.shape}")
    flat_reference, flat_other = reference.reshape(-1), other.reshape(-1)
    total = Closeness()
    for start in range(0, flat_reference.size, PIECE):
        r = flat_reference[start:start + PIECE].astype(np.float64)
        g = flat_other[start:start + PIECE].astype(np.float64)
        d = g - r
        total += Closeness(float(d @ d), float(r @ r), float(g @ g), float(g @ r))
    return total
