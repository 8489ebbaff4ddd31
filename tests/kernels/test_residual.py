"""Sums element by element: NumPy's own sum, bits."""
import dataclasses

import lawtools
import pytest
from lawtools import blank, draw

from cllm import _kernels

SHAPES = [(0, 4), (1, 1), (1, 15), (3, 17), (2, 4096), (1, 8193), (5, 8191)]


def case_of(n, c, dtype):
    def call(a, first):
        _kernels.residual_forward(a["x"], a["branch"], y=a["y"])

    arrays = {"x": draw((n, c), dtype, 0), "branch": draw((n, c), dtype, 1), "y": blank((n, c), dtype)}
    return lawtools.Case(call, arrays, rows=("x", "branch", "y"), writes=("y",))


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_and_bits(shape, dtype):
    case = case_of(*shape, dtype)
    lawtools.assert_same_bits(case.run()["y"], case.arrays["x"] + case.arrays["branch"])
    lawtools.assert_law_of_bits(case)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scaled_branch(shape, dtype):
    def call(a, first):
        _kernels.residual_forward(a["x"], a["branch"], 0.22, y=a["y"])

    case = dataclasses.replace(case_of(*shape, dtype), call=call)
    expected = case.arrays["x"].astype("float64") + 0.22 * case.arrays["branch"].astype("float64")
    lawtools.assert_close(case.run()["y"], expected, float32=1e-7, float64=2e-16)
    lawtools.assert_law_of_bits(case)


def add_case(size, dtype):
    return lawtools.Case(lambda a, first: _kernels.add_in_place(a["x"], y=a["y"]),
                         {"x": draw(size, dtype, 0), "y": draw(size, dtype, 1)}, ("x", "y"), ("y",))


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 8191, 8192, 8193, 40001])
def test_add_in_place(size, dtype):
    case = add_case(size, dtype)
    lawtools.assert_same_bits(case.run()["y"], case.arrays["x"] + case.arrays["y"])
    lawtools.assert_law_of_bits(case)


def test_output_may_be_an_input():
    x, branch = draw((3, 19), "float32"), draw((3, 19), "float32", 1)
    expected = x + branch
    _kernels.residual_forward(x, branch, y=x)
    lawtools.assert_same_bits(x, expected)


def test_wrong_shapes_are_refused():
    lawtools.assert_shapes_refused(case_of(3, 5, "float32"))
    lawtools.assert_shapes_refused(add_case(5, "float32"))
