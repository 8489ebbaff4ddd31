"""Products in bfloat16 as they are defined, in NumPy: one chain of fused multiply-adds an element, each rounded once.

A product of two bfloat16 has 16 bits and lies far within the range of float64, so it is exact there. Its sum with a float32
may not be; but then rounding it to float64 first changes nothing. Of product and summand let S be the smaller and L the
larger. Where |S| < 2^-27 |L|, either way of rounding gives L, which float32 holds. Where not, the last bit of S is no less
than 2^-50 |L|, so that float64 holds the sum.
"""
import numpy as np

LEAST = np.float32(2.0 ** -126)  # the least float32 that is not subnormal


def r16(x):
    """The bfloat16 next to float32 x, ties to even, NaN quiet, subnormals zero: its bits, an array of uint16."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    size = u & 0x7fffffff
    rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16
    rounded = np.where(size > 0x7f800000, (u | 0x00400000) >> 16, rounded)
    return np.where(size < 0x00800000, (u & 0x80000000) >> 16, rounded).astype(np.uint16)


def wide(bits):
    """The float32 that bfloat16 bits are."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def flush(x):
    """Subnormals as zero of their sign."""
    return np.where(np.abs(x) < LEAST, np.copysign(np.float32(0), x), x).astype(np.float32)


def fma(a, b, c):
    """flush(a b + c), rounded once, of float32 a and b that are bfloat16."""
    product, c = a.astype(np.float64) * b.astype(np.float64), flush(c).astype(np.float64)
    total = product + c
    # the rounding to 24 bits whatever the exponent, so that what lies below 2^-126 by then is known
    scale = np.where(np.abs(total) < 2.0 ** -60, 2.0 ** 64, 1.0)
    rounded = (total * scale).astype(np.float32)
    tiny = np.abs(rounded.astype(np.float64)) < scale * 2.0 ** -126
    return np.where(tiny, np.copysign(np.float32(0), rounded), total.astype(np.float32)).astype(np.float32)


def product(a, b, start):
    """The chain acc = fma(r16(a[:, k]), r16(b[k]), acc) from `start`, k ascending, and last acc + 0."""
    a, b = wide(r16(a)), wide(r16(b))
    acc = np.array(np.broadcast_to(start, (len(a), b.shape[1])), np.float32)
    with np.errstate(all="ignore"):
        for k in range(a.shape[1]):
            acc = fma(a[:, k, None], b[None, k], acc)
        return flush(acc) + np.float32(0)
