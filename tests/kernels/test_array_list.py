"""Lists of arrays: in one call the bits of array by array, on any number of threads; what is bound, what is refused."""
import gc

import lawtools
import numpy as np
import pytest
from lawtools import draw

from cllm import _kernels
from cllm.errors import DtypeError, LayoutError, ShapeError

ArrayList = _kernels.ArrayList

# None, one, around a vector, around a piece of work (8192), and enough in all for threads; empty ones at either end.
SIZES = (0, 1, 63, 64, 8191, 0, 8192, 8193, 100_003, 17, 0)
PARTS = ("grads", "params", "m", "v")


def adamw(x, weight_decay, coupled=False):
    _kernels.adamw_update(x["grads"], 3e-3, 0.9, 0.95, 1e-8, weight_decay, coupled, 3, params=x["params"], m=x["m"], v=x["v"])


def sgd(x, weight_decay):
    _kernels.sgd_update(x["grads"], 0.01, 0.9, weight_decay, params=x["params"], velocity=x["m"])


# Every kernel over lists, with one number for each array: 0, 0.1, 1, 0, ...
KERNELS = {
    "adamw": adamw,
    "adam": lambda x, numbers: adamw(x, numbers, coupled=True),
    "momentum": sgd,
    "sgd": lambda x, numbers: _kernels.sgd_update(x["grads"], 0.01, 0.0, numbers, params=x["params"], velocity=None),
    "scale": lambda x, numbers: _kernels.scale_in_place(numbers, x=x["grads"]),
    "zero": lambda x, numbers: _kernels.fill_zero(x=x["grads"]),
}


def drawn(dtype):
    """For each part the arrays of a list; those of v are not negative."""
    arrays = {part: [draw(size, dtype, 10 * k + number) for number, size in enumerate(SIZES)] for k, part in enumerate(PARTS)}
    return arrays | {"v": [array**2 for array in arrays["v"]]}


def numbers_of(arrays):
    return np.resize([0.0, 0.1, 1.0], len(arrays["grads"]))


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_list_has_the_bits_of_its_arrays_one_by_one(name, dtype):
    expected = drawn(dtype)
    numbers = numbers_of(expected)
    for k in range(len(SIZES)):
        KERNELS[name]({part: ArrayList([arrays[k]]) for part, arrays in expected.items()}, numbers[k:k + 1])
    for n in lawtools.THREADS:
        got = {part: [lawtools.misaligned(array, number % 3) for number, array in enumerate(arrays)]
               for part, arrays in drawn(dtype).items()}
        with lawtools.threads(n):
            KERNELS[name]({part: ArrayList(arrays) for part, arrays in got.items()}, numbers)
        for part in PARTS:
            for number, (one, other) in enumerate(zip(got[part], expected[part], strict=True)):
                lawtools.assert_same_bits(one, other, f"{part}[{number}], {n} threads")


@pytest.mark.parametrize("n_threads", lawtools.THREADS)
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_sums_are_those_of_each_array(dtype, n_threads):
    arrays = drawn(dtype)["grads"]
    expected, got = np.empty((2, len(arrays)))
    for k, array in enumerate(arrays):
        _kernels.sum_of_squares(ArrayList([array]), out=expected[k:k + 1])
    with lawtools.threads(n_threads):
        _kernels.sum_of_squares(ArrayList(arrays), out=got)
    lawtools.assert_same_bits(got, expected)
    assert (got > 0).tolist() == [size > 0 for size in SIZES]


@pytest.mark.parametrize("n_threads", lawtools.THREADS)
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_arrays_that_are_not_finite_are_found(dtype, n_threads):
    arrays = drawn(dtype)["grads"]
    x, bad = ArrayList(arrays), []
    with lawtools.threads(n_threads):
        assert _kernels.nonfinite_arrays(x) == ()
        for k, at, value in ((8, 70_000, np.inf), (9, -1, -np.inf), (1, 0, np.nan), (8, 5, np.nan)):
            arrays[k][at] = value
            bad = sorted({*bad, k})
            assert _kernels.nonfinite_arrays(x) == tuple(bad)


@pytest.mark.parametrize("arrays", [[], [np.empty(0)], [np.empty(0), np.empty((3, 0))]])
def test_nothing_to_do(arrays):
    x, sums = ArrayList(arrays), lawtools.blank(len(arrays))
    for kernel in KERNELS.values():
        kernel(dict.fromkeys(PARTS, x), np.ones(len(x)))
    _kernels.sum_of_squares(x, out=sums)
    assert not sums.any() and _kernels.nonfinite_arrays(x) == ()


def test_what_is_bound_is_the_array_itself():
    array, sums = draw((3, 5, 7), "float32"), np.empty(1)
    x = ArrayList(one for one in (array,))
    assert len(x) == 1 and x.arrays[0] is array
    array[...] = 2
    where, size = array.ctypes.data, array.size
    with pytest.raises(ValueError, match="resize"):
        array.resize(1000)
    del array
    gc.collect()
    _kernels.sum_of_squares(x, out=sums)
    assert sums[0] == 4 * size and x.arrays[0].ctypes.data == where


def read_only():
    array = np.zeros(3)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("wrong, error", [
    ([np.zeros(3), np.zeros(3, "float32")], DtypeError), ([np.zeros(3, "float32"), np.zeros(3)], DtypeError),
    ([np.zeros(3), np.zeros(3, int)], DtypeError), ([np.zeros(3, "float16")], DtypeError),
    ([np.zeros(3, ">f4")], DtypeError), ([np.zeros(3), np.zeros((3, 4)).T], LayoutError),
    ([np.zeros(3), np.zeros(6)[::2]], LayoutError), ([np.zeros(3), read_only()], LayoutError)])
def test_arrays_that_cannot_be_bound_are_refused(wrong, error):
    with pytest.raises(error, match=rf"ArrayList\(arrays\)\[{len(wrong) - 1}\]: must be"):
        ArrayList(wrong)


@pytest.mark.parametrize("sizes, dtype, error", [((3, 5, 8), "float32", ShapeError), ((3, 6), "float32", ShapeError),
                                                 ((3,), "float32", ShapeError), ((5, 3), "float32", ShapeError),
                                                 ((3, 5), "float64", DtypeError)])
@pytest.mark.parametrize("kernel, part", [("adamw", "params"), ("adamw", "m"), ("adamw", "v"), ("momentum", "params"),
                                          ("momentum", "m"), ("sgd", "params")])
def test_lists_that_do_not_belong_together_are_refused(kernel, part, sizes, dtype, error):
    arrays = {one: [draw(3, "float32"), draw(5, "float32")] for one in PARTS}
    arrays[part] = [draw(size, dtype) for size in sizes]
    before = {one: [array.copy() for array in arrays[one]] for one in PARTS}
    with pytest.raises(error, match=part if kernel == "adamw" or part == "params" else "velocity"):
        KERNELS[kernel]({one: ArrayList(arrays[one]) for one in PARTS}, np.ones(2))
    for one in PARTS:
        for array, old in zip(arrays[one], before[one], strict=True):
            lawtools.assert_same_bits(array, old, one)


def test_as_many_numbers_as_arrays():
    lists = {part: ArrayList([draw(3), draw(5)]) for part in PARTS}
    for name in ("adamw", "momentum", "scale"):
        for count in (1, 3):
            with pytest.raises(ShapeError, match="must be 2"):
                KERNELS[name](lists, np.ones(count))
    with pytest.raises(ShapeError, match=r"sum_of_squares: len\(out\) must be 2; got 1"):
        _kernels.sum_of_squares(lists["grads"], out=np.empty(1))
