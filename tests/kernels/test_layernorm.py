"""Layer norm: reference, finite differences, bits."""
import lawtools
import numpy as np
import pytest
from lawtools import blank, draw

from cllm import _kernels

EPS = 1e-5
# Around the lanes of a sum (32), the columns of a strip (128), the rows of a piece and of a block (256 at 512 columns),
# and enough for threads.
SHAPES = [(0, 5), (1, 1), (1, 15), (2, 16), (3, 17), (5, 40), (7, 127), (15, 128), (16, 129), (17, 33), (70, 520),
          (257, 512)]


def reference(x, weight, bias, eps=EPS):
    x, weight, bias = (np.asarray(a, "float64") for a in (x, weight, bias))
    mean = x.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(axis=1, keepdims=True) + eps)
    return (x - mean) * rstd * weight + bias, mean[:, 0], rstd[:, 0]


def forward(x, weight, bias, eps=EPS):
    y, mean, rstd = blank(x.shape, x.dtype), blank(len(x)), blank(len(x))
    _kernels.layernorm_forward(x, weight, bias, eps, y=y, mean=mean, rstd=rstd)
    return y, mean, rstd


def inputs(n, c, dtype):
    return {"x": draw((n, c), dtype, 0) + np.dtype(dtype).type(0.5), "weight": 1 + draw(c, dtype, 1, 0.3),
            "bias": draw(c, dtype, 2)}


def forward_case(n, c, dtype):
    def call(a, first):
        _kernels.layernorm_forward(a["x"], a["weight"], a["bias"], EPS, y=a["y"], mean=a["mean"], rstd=a["rstd"])

    arrays = inputs(n, c, dtype) | {"y": blank((n, c), dtype), "mean": blank(n), "rstd": blank(n)}
    return lawtools.Case(call, arrays, rows=("x", "y", "mean", "rstd"), writes=("y", "mean", "rstd"))


def backward_case(n, c, dtype):
    def call(a, first):
        _kernels.layernorm_backward(a["dy"], a["x"], a["mean"], a["rstd"], a["weight"], dx=a["dx"],
                                    dweight=a["dweight"], dbias=a["dbias"])

    given = inputs(n, c, dtype)
    _, mean, rstd = forward(**given)
    arrays = {"dy": draw((n, c), dtype, 3), "x": given["x"], "mean": mean, "rstd": rstd, "weight": given["weight"],
              "dx": draw((n, c), dtype, 4), "dweight": draw(c, dtype, 5), "dbias": draw(c, dtype, 6)}
    return lawtools.Case(call, arrays, rows=("dy", "x", "mean", "rstd", "dx"), writes=("dx", "dweight", "dbias"))


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("n, c", SHAPES)
def test_forward_equals_the_reference(n, c, dtype):
    given = inputs(n, c, dtype)
    for got, expected, what in zip(forward(**given), reference(**given), ("y", "mean", "rstd"), strict=True):
        lawtools.assert_close(got, expected, what)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_a_row_far_from_zero_loses_nothing(dtype):
    x = draw((4, 96), dtype) + np.dtype(dtype).type(1000)
    ones, zeros = np.ones(96, dtype), np.zeros(96, dtype)
    lawtools.assert_close(forward(x, ones, zeros)[0], reference(x, ones, zeros)[0], float32=1e-6, float64=1e-11)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_a_constant_row_gives_the_bias(dtype):
    x, bias = np.full((2, 33), 7, dtype), draw(33, dtype)
    y, mean, rstd = forward(x, np.ones(33, dtype), bias)
    lawtools.assert_same_bits(y, np.stack([bias, bias]))
    assert (mean == 7).all() and (rstd == 1 / np.sqrt(EPS)).all()


@pytest.mark.parametrize("n, c", [(1, 1), (1, 3), (3, 5), (4, 17), (2, 33)])
def test_backward_equals_finite_differences(n, c):
    given, dy = inputs(n, c, "float64"), draw((n, c), seed=9)
    _, mean, rstd = forward(**given)
    dx, dweight, dbias = np.zeros((n, c)), np.zeros(c), np.zeros(c)
    _kernels.layernorm_backward(dy, given["x"], mean, rstd, given["weight"], dx=dx, dweight=dweight, dbias=dbias)

    def loss():
        return lawtools.weighted_sum(forward(**given)[0], dy)

    # A single channel is its own mean: its gradient is zero, and only rounding is left to compare.
    for got, name in ((dx, "x"), (dweight, "weight"), (dbias, "bias")):
        lawtools.assert_gradient(got, lawtools.finite_differences(loss, given[name]), f"d{name}")


@pytest.mark.parametrize("n, c", SHAPES)
def test_float32_backward_equals_float64(n, c):
    case = backward_case(n, c, "float32")
    wide = {name: array.astype("float64") for name, array in case.arrays.items()}
    case.call(wide, 0)
    for name, got in case.run().items():
        # A single channel's dx is zero but for rounding, which rstd makes large.
        lawtools.assert_close(got, wide[name], name, float32=1e-5 if c > 1 else 1e-3)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("n, c", SHAPES)
def test_bits(n, c, dtype):
    lawtools.assert_law_of_bits(forward_case(n, c, dtype))
    lawtools.assert_law_of_bits(backward_case(n, c, dtype))


def test_wrong_shapes_are_refused():
    lawtools.assert_shapes_refused(forward_case(3, 5, "float32"))
    lawtools.assert_shapes_refused(backward_case(3, 5, "float32"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(value):
    given = inputs(3, 19, "float32")
    given["x"][1, 17] = value
    y, mean, rstd = forward(**given)
    assert np.isnan(y[1]).all() and not np.isfinite(mean[1]) and np.isfinite(y[[0, 2]]).all()
    dx, dweight, dbias = np.zeros((3, 19), "float32"), np.zeros(19, "float32"), np.zeros(19, "float32")
    _kernels.layernorm_backward(draw((3, 19), "float32"), given["x"], mean, rstd, given["weight"], dx=dx,
                                dweight=dweight, dbias=dbias)
    assert np.isnan(dx[1]).all() and np.isfinite(dx[[0, 2]]).all() and np.isnan(dweight).all()


@pytest.mark.parametrize("n, c", [(1, 1), (5, 33), (70, 200)])
@pytest.mark.parametrize("left_out", [("dweight",), ("dbias",), ("dweight", "dbias")])
def test_a_gradient_that_nobody_wants_changes_no_other(left_out, n, c):
    whole = {name: array.copy() for name, array in backward_case(n, c, "float32").run().items()}
    case = backward_case(n, c, "float32")
    case.arrays.update(dict.fromkeys(left_out))
    a = case.arrays
    _kernels.layernorm_backward(a["dy"], a["x"], a["mean"], a["rstd"], a["weight"], dx=a["dx"], dweight=a["dweight"],
                                dbias=a["dbias"])
    for name in {"dx", "dweight", "dbias"} - {*left_out}:
        lawtools.assert_same_bits(a[name], whole[name], name)
