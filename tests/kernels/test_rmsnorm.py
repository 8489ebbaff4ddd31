"""RMS norm of rows and of heads within rows: reference, finite differences, bits."""
import lawtools
import numpy as np
import pytest
from lawtools import blank, draw

from cllm import _kernels
from cllm.errors import ShapeError

EPS = 1e-5
# Around the lanes of a sum (32), four of them (128), the rows of a piece and of a block (256 at 512 columns), and enough
# for threads.
SHAPES = [(0, 5), (1, 1), (1, 15), (2, 16), (3, 17), (5, 31), (5, 40), (7, 127), (15, 128), (16, 129), (70, 520),
          (257, 512)]
# N, W, start, heads, D: the k of 3 + 2 * 2 heads, the q of another, odd lengths, all of a range as one piece, no heads.
RANGES = [(5, 28, 12, 2, 4), (130, 448, 0, 3, 64), (3, 40, 7, 3, 5), (9, 200, 60, 1, 131), (1, 64, 32, 2, 16),
          (4, 10, 5, 0, 3), (65, 256, 128, 2, 64)]


def reference(x, weight, offset, start, heads):
    """y of the columns alone (N H D), xhat and rstd, in float64."""
    x, weight = np.asarray(x, "float64"), np.asarray(weight, "float64") + offset
    pieces = x[:, start:start + heads * len(weight)].reshape(len(x), heads, len(weight))
    rstd = 1 / np.sqrt((pieces**2).mean(axis=2) + EPS)
    xhat = pieces * rstd[:, :, None]
    return xhat * weight, xhat, rstd


def whole(n, c):
    """A range that is the whole row."""
    return n, c, 0, 1, c


def inputs(n, width, dim, dtype, offset):
    weight = draw(dim, dtype, 1, 0.3)
    return draw((n, width), dtype, 0, 2.0), weight if offset else 1 + weight


def forward(x, weight, offset, start, heads):
    y, rstd = blank(x.shape, x.dtype), blank((len(x), heads))
    _kernels.rmsnorm_forward(x, weight, EPS, offset, start, start + heads * len(weight), y=y, rstd=rstd)
    return y, rstd


def forward_case(shape, dtype, offset=False):
    n, width, start, heads, dim = shape

    def call(a, first):
        _kernels.rmsnorm_forward(a["x"], a["weight"], EPS, offset, start, start + heads * dim, y=a["y"],
                                 rstd=a["rstd"])

    x, weight = inputs(n, width, dim, dtype, offset)
    arrays = {"x": x, "weight": weight, "y": blank((n, width), dtype), "rstd": blank((n, heads))}
    return lawtools.Case(call, arrays, rows=("x", "y", "rstd"), writes=("y", "rstd"))


def backward_case(shape, dtype, offset=False, add=True):
    n, width, start, heads, dim = shape

    def call(a, first):
        _kernels.rmsnorm_backward(a["dy"], a["x"], a["rstd"], a["weight"], offset, add, start, start + heads * dim,
                                  dx=a["dx"], dweight=a["dweight"])

    x, weight = inputs(n, width, dim, dtype, offset)
    arrays = {"dy": draw((n, width), dtype, 3), "x": x, "rstd": forward(x, weight, offset, start, heads)[1],
              "weight": weight, "dx": draw((n, width), dtype, 4), "dweight": draw(dim, dtype, 5)}
    return lawtools.Case(call, arrays, rows=("dy", "x", "rstd", "dx"), writes=("dx", "dweight"))


def cases(dtype):
    for shape in [*(whole(*s) for s in SHAPES), *RANGES]:
        for offset in (False, True):
            yield forward_case(shape, dtype, offset)
            yield backward_case(shape, dtype, offset)
        yield backward_case(shape, dtype, add=False)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("shape", [*(whole(*s) for s in SHAPES), *RANGES])
def test_forward_and_backward_equal_the_reference(shape, offset, dtype):
    n, width, start, heads, dim = shape
    columns = slice(start, start + heads * dim)
    x, weight = inputs(n, width, dim, dtype, offset)
    y, rstd = forward(x, weight, offset, start, heads)
    expected, xhat, statistic = reference(x, weight, offset, start, heads)
    lawtools.assert_close(y[:, columns].reshape(expected.shape), expected, "y", float32=4e-7, float64=1e-15)
    lawtools.assert_close(rstd, statistic, "rstd", float64=1e-15)
    outside = np.delete(y, np.r_[columns], axis=1)
    assert np.isnan(outside).all()

    case = backward_case(shape, dtype, offset)
    dy, before = case.arrays["dy"].astype("float64")[:, columns].reshape(expected.shape), case.arrays["dx"]
    g = dy * (weight.astype("float64") + offset)
    dx = statistic[:, :, None] * (g - xhat * (g * xhat).mean(axis=2, keepdims=True))
    got = case.run()
    lawtools.assert_close(got["dx"][:, columns], before[:, columns] + dx.reshape(n, heads * dim), "dx", float32=2e-6)
    lawtools.assert_same_bits(np.delete(got["dx"], np.r_[columns], 1), np.delete(before, np.r_[columns], 1))
    lawtools.assert_close(got["dweight"], case.arrays["dweight"] + (dy * xhat).sum(axis=(0, 1)), "dweight",
                          float32=2e-5)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("shape", [whole(1, 1), whole(3, 5), whole(2, 33), (2, 11, 3, 2, 3), (3, 40, 1, 1, 37)])
def test_backward_equals_finite_differences(shape, offset):
    n, width, start, heads, dim = shape
    x, weight = inputs(n, width, dim, "float64", offset)
    dy, dx, dweight = draw((n, width), seed=9), np.zeros((n, width)), np.zeros(dim)
    rstd = forward(x, weight, offset, start, heads)[1]
    _kernels.rmsnorm_backward(dy, x, rstd, weight, offset, True, start, start + heads * dim, dx=dx, dweight=dweight)

    def loss():
        y = forward(x, weight, offset, start, heads)[0]
        columns = slice(start, start + heads * dim)
        return lawtools.weighted_sum(y[:, columns], dy[:, columns])

    for got, array, name in ((dx, x, "dx"), (dweight, weight, "dweight")):
        lawtools.assert_gradient(got, lawtools.finite_differences(loss, array), name)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_bits(dtype):
    for case in cases(dtype):
        lawtools.assert_law_of_bits(case)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", [whole(70, 520), (130, 448, 0, 3, 64)])
def test_dx_may_be_dy(shape, dtype):
    n, width, start, heads, dim = shape
    case = backward_case(shape, dtype, add=False)
    expected = case.run()
    a = {name: array.copy() for name, array in case.arrays.items()}
    for n_threads in lawtools.THREADS:
        dy, dweight = a["dy"].copy(), a["dweight"].copy()
        with lawtools.threads(n_threads):
            case.call(a | {"dy": dy, "dx": dy, "dweight": dweight}, 0)
        columns = slice(start, start + heads * dim)
        lawtools.assert_same_bits(dy[:, columns].copy(), expected["dx"][:, columns].copy(), "dx")
        lawtools.assert_same_bits(np.delete(dy, np.r_[columns], 1), np.delete(a["dy"], np.r_[columns], 1), "others")
        lawtools.assert_same_bits(dweight, expected["dweight"], "dweight")


def test_y_may_be_x():
    x, weight = inputs(9, 40, 5, "float32", False)
    y, rstd = forward(x, weight, False, 7, 3)
    _kernels.rmsnorm_forward(x, weight, EPS, False, 7, 22, y=x, rstd=rstd)
    lawtools.assert_same_bits(x[:, 7:22].copy(), y[:, 7:22].copy())


def test_without_dweight_dx_has_the_same_bits():
    case = backward_case(whole(70, 520), "float32")
    dx = case.arrays["dx"].copy()
    case.call(case.arrays | {"dx": dx, "dweight": None}, 0)
    lawtools.assert_same_bits(dx, case.run()["dx"])


def test_heads_are_norms_of_their_own():
    """The bits of a head do not depend on the heads beside it, nor on where its columns stand."""
    x, weight = inputs(6, 64, 16, "float32", False)
    y, rstd = forward(x, weight, False, 16, 3)
    for h in range(3):
        alone, statistic = forward(x[:, 16 + 16 * h:32 + 16 * h].copy(), weight, False, 0, 1)
        lawtools.assert_same_bits(y[:, 16 + 16 * h:32 + 16 * h].copy(), alone)
        lawtools.assert_same_bits(rstd[:, h:h + 1].copy(), statistic)


def test_wrong_shapes_are_refused():
    for shape in (whole(3, 5), (3, 40, 7, 3, 5)):
        lawtools.assert_shapes_refused(forward_case(shape, "float32"))
        lawtools.assert_shapes_refused(backward_case(shape, "float32"))


def test_without_a_range_it_is_the_whole_row():
    x, weight = inputs(3, 19, 19, "float32", False)
    y, rstd = blank((3, 19), "float32"), blank((3, 1))
    _kernels.rmsnorm_forward(x, weight, EPS, y=y, rstd=rstd)
    lawtools.assert_same_bits(y, forward(x, weight, False, 0, 1)[0])
    with pytest.raises(ShapeError, match="1 heads of 18 within 19 columns"):
        _kernels.rmsnorm_forward(x, weight[1:], EPS, y=y, rstd=rstd)


@pytest.mark.parametrize("start, stop", [(-1, 4), (0, 6), (3, 7), (2, 12), (7, 2)])
def test_wrong_ranges_are_refused(start, stop):
    x, rstd, weight = np.ones((2, 10), "float32"), np.ones((2, 1)), np.ones(5, "float32")
    for call in (lambda: _kernels.rmsnorm_forward(x, weight, EPS, False, start, stop, y=x, rstd=rstd),
                 lambda: _kernels.rmsnorm_backward(x, x, rstd, weight, False, True, start, stop, dx=x, dweight=weight)):
        with pytest.raises(ShapeError, match="columns start to stop must be 1 heads of 5 within 10 columns"):
            call()
    assert (x == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(value):
    x, weight = inputs(3, 19, 19, "float32", False)
    x[1, 17] = value
    y, rstd = forward(x, weight, False, 0, 1)
    assert np.isnan(y[1, 17]) and np.isfinite(y[[0, 2]]).all()
    dx, dweight = np.zeros((3, 19), "float32"), np.zeros(19, "float32")
    _kernels.rmsnorm_backward(draw((3, 19), "float32"), x, rstd, weight, dx=dx, dweight=dweight)
    assert not np.isfinite(dx[1]).all() and np.isfinite(dx[[0, 2]]).all() and not np.isfinite(dweight).all()
