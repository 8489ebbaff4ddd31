"""Adafactor against its formulas in NumPy, bits, what is refused."""
import lawtools
import numpy as np
import pytest
from lawtools import draw

from cllm import _kernels
from cllm.errors import DtypeError, ShapeError

ArrayList = _kernels.ArrayList
SHAPES = [(1, 1), (3, 5), (1, 300), (300, 1), (64, 64), (65, 129), (40, 9000), (700, 63), (0, 4)]


def arrays(shape, dtype, seed=0):
    rows, columns = shape
    return {"grad": draw(shape, dtype, seed), "param": draw(shape, dtype, seed + 1), "row": draw(rows, dtype, seed + 2) ** 2,
            "column": draw(columns, dtype, seed + 3) ** 2}


def update(a, rate=0.01, keep=0.7, clip=1.0, eps=1e-30, decay=0.002):
    x = {name: ArrayList([array]) for name, array in a.items()}
    _kernels.adafactor_update(x["grad"], np.array([rate]), keep, clip, eps, np.array([decay]), np.array([a["column"].size]),
                              params=x["param"], rows=x["row"], columns=x["column"])


def reference(a, rate=0.01, keep=0.7, clip=1.0, eps=1e-30, decay=0.002):
    """In float64, but for the means, which the second half reads as they are kept."""
    dtype = a["grad"].dtype
    grad, param = a["grad"].astype("float64"), a["param"].astype("float64")
    row, column = ((keep * a[name].astype("float64") + (1 - keep) * (grad**2 + eps).mean(axis)).astype(dtype)
                   for name, axis in (("row", 1), ("column", 0)))
    v = np.outer(row.astype("float64"), column.astype("float64")) / row.astype("float64").mean()
    moved = grad / np.sqrt(v)
    rms = np.sqrt((moved**2).mean())
    return {"row": row, "column": column, "param": param - rate * moved / max(1, rms / clip) - decay * param}, rms


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_equals_the_reference(shape, dtype):
    for changes in ({}, {"keep": 0.0}, {"clip": 0.1}, {"clip": 1e9, "decay": 0.0}):
        got = arrays(shape, dtype)
        if got["grad"].size:
            expected, rms = reference(got, **changes)
            assert (rms > changes.get("clip", 1.0)) == ("clip" not in changes or changes["clip"] < 1) or got["grad"].size < 400
        else:
            expected = {name: array.copy() for name, array in got.items()}
        update(got, **changes)
        for name in expected:
            lawtools.assert_close(got[name], expected[name], name, float32=2e-7, float64=1e-15)


def test_of_one_axis_the_row_is_the_second_moment_itself():
    a = arrays((500, 1), "float64")
    a["column"][:] = a["row"].mean()
    v = 0.7 * a["row"] + 0.3 * a["grad"][:, 0] ** 2
    expected = a["param"][:, 0] - 0.01 * a["grad"][:, 0] / np.sqrt(v)
    update(a, clip=1e9, decay=0.0)
    lawtools.assert_close(a["param"][:, 0], expected, "param")


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits(shape, dtype):
    """Threads, addresses and what else is in the list change nothing."""
    expected = arrays(shape, dtype)
    update(expected)
    for n_threads, shift in ((1, 1), (2, 0), (3, 3)):
        got = {name: lawtools.misaligned(array, shift) for name, array in arrays(shape, dtype).items()}
        with lawtools.threads(n_threads):
            update(got)
        for name in got:
            lawtools.assert_same_bits(got[name], expected[name], name)
    many = [arrays((7, 3), dtype, 9), arrays(shape, dtype), arrays((300, 200), dtype, 5)]
    x = {name: ArrayList([one[name] for one in many]) for name in many[0]}
    with lawtools.threads(2):
        _kernels.adafactor_update(x["grad"], np.full(3, 0.01), 0.7, 1.0, 1e-30, np.full(3, 0.002),
                                  np.array([one["column"].size for one in many]), params=x["param"], rows=x["row"],
                                  columns=x["column"])
    for name in expected:
        lawtools.assert_same_bits(many[1][name], expected[name], name)


@pytest.mark.parametrize("name, wrong, error", [
    ("row", np.zeros(4), ShapeError), ("column", np.zeros(4), ShapeError), ("param", np.zeros((3, 4)), ShapeError),
    ("row", np.zeros(3, np.float32), DtypeError), ("param", np.zeros((3, 5), np.float32), DtypeError)])
def test_arrays_that_do_not_belong_together_are_refused(name, wrong, error):
    with pytest.raises(error, match="adafactor_update"):
        update({**arrays((3, 5), "float64"), name: wrong})
