"""The helpers of the laws can fail: each is shown a kernel that breaks its law."""
import lawtools
import numpy as np
import pytest

from cllm import _kernels
from cllm.errors import ShapeError


def sum_case(call, n=9):
    arrays = {"x": lawtools.draw((n, 3), "float32"), "total": lawtools.draw((3,), "float32", 1)}
    return lawtools.Case(call, arrays, rows=("x",), writes=("total",))


def add_rows(arrays, first):
    for row in arrays["x"]:
        arrays["total"] += row


def test_an_ordered_sum_keeps_the_law():
    lawtools.assert_law_of_bits(sum_case(add_rows))


def by_threads(arrays, first):
    for part in np.array_split(arrays["x"], _kernels.get_threads()):
        arrays["total"] += part.sum(axis=0, dtype="float32")


def by_address(arrays, first):
    arrays["total"] += arrays["x"].sum(axis=0) * (1 + arrays["x"].ctypes.data % 64)


def overwriting(arrays, first):
    arrays["total"][...] = arrays["x"].sum(axis=0)


@pytest.mark.parametrize("kernel", [by_threads, by_address, overwriting])
def test_a_broken_sum_breaks_the_law(kernel):
    with pytest.raises(AssertionError):
        lawtools.assert_law_of_bits(sum_case(kernel))


def test_a_row_that_depends_on_its_number_breaks_the_law():
    def call(arrays, first):
        arrays["y"][...] = arrays["x"] + np.arange(len(arrays["x"]), dtype="float32")[:, None]

    arrays = {"x": lawtools.draw((9, 3), "float32"), "y": lawtools.blank((9, 3), "float32")}
    with pytest.raises(AssertionError):
        lawtools.assert_law_of_bits(lawtools.Case(call, arrays, rows=("x", "y"), writes=("y",)))


def test_bits_see_a_sign_of_zero_and_a_last_place():
    one = np.ones(2)
    lawtools.assert_same_bits(one, one.copy())
    for other in (np.array([1.0, np.nextafter(1, 2)]), np.ones(2, "float32"), np.ones(3)):
        with pytest.raises(AssertionError):
            lawtools.assert_same_bits(one, other)
    with pytest.raises(AssertionError):
        lawtools.assert_same_bits(np.zeros(1), -np.zeros(1))


def test_gradients_are_told_from_wrong_ones():
    x = lawtools.draw((2, 3))
    numeric = lawtools.finite_differences(lambda: lawtools.weighted_sum(x**2, x), x)
    lawtools.assert_gradient(3 * x**2, numeric)
    for wrong in (-3 * x**2, 3 * x**2 * (1 + 1e-5), np.zeros_like(x), x, np.full_like(x, np.nan)):
        with pytest.raises(AssertionError):
            lawtools.assert_gradient(wrong, numeric)


def test_closeness_sees_an_error_and_nan():
    reference = lawtools.draw((4,))
    lawtools.assert_close(reference.copy(), reference)
    for wrong in (reference + 1e-10, np.full(4, np.nan)):
        with pytest.raises(AssertionError):
            lawtools.assert_close(wrong, reference)


def test_a_kernel_that_checks_nothing_is_found():
    with pytest.raises(pytest.fail.Exception):
        lawtools.assert_shapes_refused(sum_case(lambda arrays, first: None))


def test_a_kernel_that_writes_before_it_checks_is_found():
    def call(arrays, first):
        arrays["total"] += 1
        raise ShapeError("kernel", "must", "got", "Do.")

    with pytest.raises(AssertionError):
        lawtools.assert_shapes_refused(sum_case(call))
