"""Products in bfloat16 that are summed in units of 32 are what their definition says, bit for bit."""
from fractions import Fraction

import bfloat16_reference as reference
import numpy as np
import pytest
from bfloat16_products import made, room
from bfloat16_reference import AWKWARD, float_of, magnitudes, r16, wide
from lawtools import assert_same_bits, draw, misaligned, threads

import cllm
from cllm import _kernels as kernels
from cllm.errors import CllmError
from cllm.program.dims import COMPUTES, UNIT, UNITS

IN_UNITS = COMPUTES.index(UNITS)
SHAPES = [(1, 1, 1), (3, 4, 0), (5, 0, 3), (2, 32, 33), (13, 13, 31), (15, 65, 33), (20, 600, 60), (17, 31, 390)]


# As this processor makes them, and by tiles of float32: those of AMX but for the instruction.
way = made("decide", "tiles")


def forward(x, weight, bias=None, y=None):
    y = np.empty((len(x), weight.shape[1]), np.float32) if y is None else y
    kernels.linear_forward(x, weight, bias, IN_UNITS, y=y, workspace=room(*x.shape, weight.shape[1]))
    return y


def weight_gradient(x, dy, dweight, sequence=0):
    made = dweight.copy()
    kernels.linear_backward_weight(x, dy, IN_UNITS, sequence, dweight=made, dbias=None, workspace=room(*x.shape, dy.shape[1]))
    return made


def exactly(a, b, start):
    """One element of the definition by fractions: what is rounded, and when."""
    def step(exact):
        return Fraction(float(float_of(exact)))

    acc = Fraction(float(start))
    for first in range(0, len(a), 32):
        chains = [Fraction(0), Fraction(0)]
        for k in range(first, min(first + 32, len(a))):
            chains[k % 2] = step(Fraction(float(a[k])) * Fraction(float(b[k])) + chains[k % 2])
        acc = step(acc + step(chains[0] + chains[1]))
    return float_of(acc)


@pytest.mark.parametrize("depth, scale", [(50, 0), (35, -63)])
def test_the_reference_is_exact_arithmetic_rounded_where_it_says(depth, scale):
    """On numbers of a size and of many, and where products, sums and starts are about the least normal number."""
    near = [draw(shape, "float32", seed) * np.float32(2.0 ** scale) for shape, seed in (((3, depth), 3), ((depth, 4), 4))]
    for a, b in ((magnitudes((3, depth), 1), magnitudes((depth, 4), 2)), near):
        a, b = wide(r16(a)), wide(r16(b))
        start = reference.flush(magnitudes((3, 4), 5) * np.float32(2.0 ** (2 * scale)))
        found = reference.product_in_units(a, b, start)
        assert_same_bits(found, np.float32([[exactly(a[i], b[:, j], start[i, j]) for j in range(4)] for i in range(3)]))
    chain = reference.product(a, b, start)
    assert (found != chain).any(), "in one chain it would be another function"


def test_the_sum_of_two_numbers_is_rounded_once():
    rng = np.random.default_rng(0)
    a = rng.integers(2 ** 23, 2 ** 24, 600) * np.float32(2) ** rng.integers(-40, 3, 600)
    b = rng.choice([-1, 1], 600) * rng.integers(2 ** 23, 2 ** 24, 600) * np.float32(2) ** rng.integers(-40, 3, 600)
    b[:200] = np.spacing(np.abs(a[:200])) / 2 * rng.choice([1, 1 + 2.0 ** -23, 1 - 2.0 ** -24], 200)  # ties, and what is next
    a[-200:], b[-200:] = (x[-200:] * np.float32(2.0 ** -128) for x in (a, b))
    a, b = a.astype(np.float32), b.astype(np.float32)
    expected = [float_of(Fraction(float(x)) + Fraction(float(y)))
                for x, y in zip(reference.flush(a), reference.flush(b), strict=True)]
    assert_same_bits(reference.sum_of(a, b), np.float32(expected))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_their_definition_bit_for_bit(shape):
    n, i, o = shape
    x, weight, dy, bias = (magnitudes(s, k) for k, s in enumerate([(n, i), (i, o), (n, o), (o,)]))
    dweight = magnitudes((i, o), 9)
    for arrays in (x, weight, dy, bias, dweight):
        arrays.reshape(-1)[::7] = np.resize(AWKWARD[:-5], arrays.reshape(-1)[::7].shape)
    expected = reference.product_in_units(x, weight, bias)
    for count in (1, 3):
        with threads(count):
            assert_same_bits(forward(x, weight, bias), expected, "forward")
            assert_same_bits(forward(x, weight, bias, np.empty((n, o), np.uint16)), r16(expected), "forward into bfloat16")
            dx = np.empty((n, i), np.float32)
            kernels.linear_backward_input(dy, weight, None, IN_UNITS, dx=dx, workspace=room(n, i, o))
            assert_same_bits(dx, reference.product_in_units(dy, weight.T, 0), "input")
            for given in ((r16(x), dy), (x, r16(dy))):
                assert_same_bits(weight_gradient(*given, dweight), reference.product_in_units(x.T, dy, dweight), "weight")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(5, 2, 3), (29, 7, 31), (33, 70, 65), (3, 600, 3)])
def test_sums_that_are_subnormal_are_zero(shape):
    n, i, o = shape
    sizes = [((n, i), -63), ((i, o), -64), ((n, o), -64), ((o,), -127), ((i, o), -127)]
    x, weight, dy, bias, start = (draw(s, "float32", k) * np.float32(2.0 ** e) for k, (s, e) in enumerate(sizes))
    y = forward(x, weight, bias)
    assert_same_bits(y, reference.product_in_units(x, weight, bias), "forward")
    assert_same_bits(weight_gradient(x, dy, start), reference.product_in_units(x.T, dy, start), "weight")
    assert not np.signbit(y[y == 0]).any() and (y == 0).any() and (np.abs(y[y != 0]) >= reference.LEAST).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("time", [1, 2, 31, 33, 48, 50, 128, 600])
def test_sums_over_rows_begin_anew_with_each_sequence(time):
    """So whole sequences may be cut off anywhere, and parts of one where units end."""
    n = 40 if time == 1 else 3 * time
    x, dy, start = magnitudes((n, 19), 1), magnitudes((n, 53), 2), magnitudes((19, 53), 3)
    x[:, :4], dy[:, :5] = (draw((n, k), "float32", k) * np.float32(2.0 ** -63) for k in (4, 5))  # products are flushed, or not
    start[:4, :5] = 0
    expected = reference.product_in_units(x.T, dy, start, time) if time > 1 else reference.product(x.T, dy, start)
    for count in (1, 3):
        with threads(count):
            assert_same_bits(weight_gradient(x, dy, start, time), expected, "at once")
    units = [first + unit for first in range(0, n, time) for unit in range(0, time, UNIT)]
    for cuts in (range(time, n, time), units[1:]):
        made = start
        for first, end in zip((0, *cuts), (*cuts, n), strict=True):
            made = weight_gradient(misaligned(x[first:end]), misaligned(dy[first:end]), made, time)
        assert_same_bits(made, expected, "cut")


@pytest.mark.usefixtures("way")
def test_what_fills_a_unit_up_meets_no_infinity():
    """The last k alone, of odd number or of even, in either operand: zero times infinity would be NaN."""
    for depth in (33, 34):
        a, b = np.ones((5, depth), np.float32), np.ones((depth, 20), np.float32)
        a[0, -1], b[-1, 3] = np.inf, -np.inf
        expected = np.full((5, 20), depth, np.float32)
        expected[0], expected[:, 3] = np.inf, -np.inf
        assert_same_bits(forward(a, b), expected, "a by rows")
        assert_same_bits(weight_gradient(a.T.copy(), b, np.zeros_like(expected)), expected, "a by columns")


@pytest.mark.usefixtures("way")
def test_gradients_of_blocks_begin_anew_with_each_sequence():
    time, s, h, d = 50, 2, 3, 14
    shapes = [(2 * time, h * d), (2 * time, s * h * d), (s, h, d, d), (s * h * d,)]
    x, dy, weight, bias = (magnitudes(shape, k) for k, shape in enumerate(shapes))
    for count in (1, 3):
        with threads(count):
            work = np.empty(kernels.block_linear_workspace(2 * time, s, h, d, count, 4, True), np.float32)
            y, dx, dw = np.empty(dy.shape, np.uint16), np.empty_like(x), magnitudes(weight.shape, 8)
            begin = dw.copy()
            kernels.block_linear_forward(r16(x), weight, bias, IN_UNITS, y=y, workspace=work)
            kernels.block_linear_backward_input(dy, weight, IN_UNITS, dx=dx, workspace=work)
            kernels.block_linear_backward_weight(r16(x), dy, IN_UNITS, time, dweight=dw, dbias=None, workspace=work)
        for head in range(h):
            mine, sums = slice(head * d, head * d + d), np.zeros((2 * time, d), np.float32)
            for part in range(s):
                block, columns = weight[part, head], slice((part * h + head) * d, (part * h + head + 1) * d)
                made = reference.product_in_units(x[:, mine], block.T, bias[columns])
                assert_same_bits(y[:, columns].copy(), r16(made))
                made = reference.product_in_units(dy[:, columns].T, x[:, mine], begin[part, head], time)
                assert_same_bits(dw[part, head], made)
                sums = reference.product_in_units(dy[:, columns], block, sums)  # units begin anew with each part
            assert_same_bits(dx[:, mine].copy(), sums)


def test_what_is_no_way_of_summing_is_refused():
    x, dweight = draw((4, 5), "float32", 1), np.zeros((5, 5), np.float32)
    for rounds in (-1, 3):
        with pytest.raises(CllmError, match=f"rounds must be 0, 1 or 2; got {rounds}"):
            kernels.linear_forward(x, dweight, None, rounds, y=x.copy(), workspace=room(4, 5, 5))
    with pytest.raises(CllmError, match="sequence must be a number of rows, or 0; got -2"):
        kernels.linear_backward_weight(x, x, IN_UNITS, -2, dweight=dweight, dbias=None, workspace=room(4, 5, 5))
    with pytest.raises(CllmError, match="not in float64"):
        kernels.linear_forward(x.astype(float), dweight.astype(float), None, IN_UNITS, y=x.astype(float),
                               workspace=room(4, 5, 5).astype(float))

def test_the_trial_of_amx_passes_what_keeps_the_definition():
    """Where there is no AMX, the same trial of the same words by float32."""
    assert kernels.bfloat16_tiles_agree()
    assert (kernels.bfloat16_instruction() == "amx") <= {"amx_tile", "amx_bf16"}.issubset(cllm.versions()["cpu_vectors"])

