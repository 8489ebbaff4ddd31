"""Products in bfloat16 as they are defined, in NumPy: fused multiply-adds, each rounded once, one chain an element or in units.

A product of two bfloat16 has 16 bits and lies far within the range of float64, so it is exact there. Its sum with a float32
may not be; but then rounding it to float64 first changes nothing. Of product and summand let S be the smaller and L the
larger. Where |S| < 2^-27 |L|, either way of rounding gives L, which float32 holds. Where not, the last bit of S is no less
than 2^-51 |L|, and 53 bits hold the sum. That is so of two float32, too.
"""
from fractions import Fraction

import numpy as np
from lawtools import assert_same_bits

LEAST = np.float32(2.0 ** -126)  # the least float32 that is not subnormal
AWKWARD = np.array([0, -0.0, 1, -1, 2.0 ** -126, -2.0 ** -126, 1e-40, -1e-40, 2.0 ** -133, 3e38, -3e38, 1e-30, np.inf, np.nan,
                    1 + 2.0 ** -8, 1 + 3 * 2.0 ** -8, 1 + 2.0 ** -8 + 2.0 ** -23], np.float32)


def magnitudes(shape, seed):
    """Numbers of every size, so that sums cancel, vanish in others and leave the range of float32 below."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-66, 4, shape)).astype(np.float32)


def float_of(exact, least=Fraction(2) ** -126):
    """The float32 next to a fraction, ties to even; zero where it is below the least normal number once it has 24 bits."""
    if exact == 0:
        return np.float32(0)
    exponent = 0
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    rounded = round(exact / unit) * unit  # Python rounds ties to even
    return np.float32(0 if abs(rounded) < least else float(rounded))


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


def sum_of(a, b):
    """flush(a + b), rounded once, of float32: `fma` with 1, whose product is exact and has 24 bits."""
    return fma(flush(a), np.float32([1]), b)


def product_in_units(a, b, start, sequence=None):
    """acc = acc + (even + odd) from `start`, unit by unit, and last acc + 0.

    A unit is 32 k of a sequence, as many as there are, filled with zeros; even and odd are chains from 0 over its k of even
    and of odd number. `sequence` is the k of each, None all of them.
    """
    depth = a.shape[1]
    sequence = sequence or max(depth, 1)
    a, b = wide(r16(a)), wide(r16(b))
    acc = np.array(np.broadcast_to(start, (len(a), b.shape[1])), np.float32)
    zero = np.zeros_like(acc)
    with np.errstate(all="ignore"):
        for first in (f for s in range(0, depth, sequence) for f in range(s, min(s + sequence, depth), 32)):
            end = min(first + 32, depth, first // sequence * sequence + sequence)
            unit = [np.zeros((len(a), 32), np.float32), np.zeros((32, b.shape[1]), np.float32)]
            unit[0][:, :end - first], unit[1][:end - first] = a[:, first:end], b[first:end]
            chains = [zero, zero]
            for k in range(32):
                chains[k % 2] = fma(unit[0][:, k, None], unit[1][None, k], chains[k % 2])
            acc = sum_of(sum_of(*chains), acc)
        return flush(acc) + np.float32(0)


def assert_linear_step(product, step, model, values):
    """What a step of `Linear` wrote is `product`, one of the above, of what it read, rounded where it is kept as bfloat16."""
    x = values[step.inputs["x"]].reshape(-1, step.layer.I)
    expected = product(x, *(model.parameters[step.params[name]] for name in ("weight", "bias")))
    if model.program.values[step.output].dtype == "bfloat16":
        expected = wide(r16(expected))
    assert_same_bits(values[step.output].reshape(expected.shape), expected, step.name)
