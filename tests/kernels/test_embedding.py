"""Token and position embedding: NumPy's indexing, finite differences, bits."""
import lawtools
import numpy as np
import pytest
from lawtools import blank, draw

from cllm import _kernels
from cllm.errors import ShapeError

# Sequences, time, V, C: around the columns of a piece (128), few tokens that come again and again, enough for threads.
SHAPES = [(0, 3, 5, 4), (1, 1, 1, 1), (2, 3, 4, 7), (3, 5, 2, 33), (1, 9, 61, 127), (2, 4, 9, 128), (3, 3, 7, 129),
          (8, 16, 11, 300)]


def inputs(batch, time, vocab, c, dtype, positions=True):
    tokens = np.random.default_rng(0).integers(0, vocab, batch * time).astype("int32")
    return {"tokens": tokens, "weight": draw((vocab, c), dtype, 1),
            "positions": draw((time + 2, c), dtype, 2) if positions else None}


def cases(batch, time, vocab, c, dtype, positions=True, scale=1.0):
    given = inputs(batch, time, vocab, c, dtype, positions)
    n = batch * time

    def forward(a, first):
        _kernels.embedding_forward(a["tokens"], a["weight"], a.get("positions"), time, scale, y=a["y"])

    def backward(a, first):
        _kernels.embedding_backward(a["tokens"], a["dy"], time, scale, dweight=a["dweight"],
                                    dpositions=a.get("dpositions"))

    arrays = {"tokens": given["tokens"], "weight": given["weight"], "y": blank((n, c), dtype)}
    grads = {"tokens": given["tokens"], "dy": draw((n, c), dtype, 3), "dweight": draw((vocab, c), dtype, 4)}
    if positions:
        arrays["positions"] = given["positions"]
        grads["dpositions"] = draw((time + 2, c), dtype, 5)
    yield lawtools.Case(forward, arrays, rows=("tokens", "y"), writes=("y",), unit=time)
    yield lawtools.Case(backward, grads, rows=("tokens", "dy"), unit=time,
                        writes=("dweight", "dpositions") if positions else ("dweight",))


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_sums_equal_the_reference(shape, dtype, positions):
    forward, backward = cases(*shape, dtype, positions)
    a, time, n = forward.arrays, shape[1], shape[0] * shape[1]
    expected = a["weight"][a["tokens"]]
    at = np.arange(n) % time
    if positions:
        expected = expected + a["positions"][at]
    lawtools.assert_same_bits(forward.run()["y"], expected)
    # np.add.at adds one after the other in the array's dtype: the same bits.
    g = {name: array.copy() for name, array in backward.arrays.items()}
    np.add.at(g["dweight"], g["tokens"], g["dy"])
    if positions:
        np.add.at(g["dpositions"], at, g["dy"])
    for name, got in backward.run().items():
        lawtools.assert_same_bits(got, g[name], name)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scaled_token_rows(shape, dtype):
    scale = np.dtype(dtype).type(np.sqrt(shape[3] + 0.3))
    for positions in (True, False):
        forward, backward = cases(*shape, dtype, positions, float(scale))
        a, g, at = forward.arrays, backward.arrays, np.arange(shape[0] * shape[1]) % shape[1]
        expected = a["weight"][a["tokens"]] * scale
        if not positions:
            lawtools.assert_same_bits(forward.run()["y"], expected)
        else:
            expected = expected.astype("float64") + a["positions"][at]
            lawtools.assert_close(forward.run()["y"], expected, float32=2e-7, float64=3e-16)
        for case in (forward, backward):
            lawtools.assert_law_of_bits(case)
        dweight = g["dweight"].astype("float64")
        np.add.at(dweight, g["tokens"], g["dy"].astype("float64") * float(scale))
        lawtools.assert_close(backward.run()["dweight"], dweight, float32=1e-6, float64=1e-14)
        if positions:  # their gradient is not scaled
            lawtools.assert_same_bits(backward.run()["dpositions"],
                                      list(cases(*shape, dtype))[1].run()["dpositions"])


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_backward_equals_finite_differences(scale):
    batch, time, vocab, c = 2, 3, 4, 5
    given, dy, y = inputs(batch, time, vocab, c, "float64"), draw((6, c), seed=8), blank((6, c))
    dweight, dpositions = np.zeros((vocab, c)), np.zeros((time + 2, c))
    _kernels.embedding_backward(given["tokens"], dy, time, scale, dweight=dweight, dpositions=dpositions)

    def loss():
        _kernels.embedding_forward(given["tokens"], given["weight"], given["positions"], time, scale, y=y)
        return lawtools.weighted_sum(y, dy)

    lawtools.assert_gradient(dweight, lawtools.finite_differences(loss, given["weight"]), "dweight")
    lawtools.assert_gradient(dpositions, lawtools.finite_differences(loss, given["positions"]), "dpositions")


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits(shape, dtype, positions):
    for case in cases(*shape, dtype, positions):
        lawtools.assert_law_of_bits(case)


def test_wrong_shapes_are_refused():
    # The number of tokens in the vocabulary shows in no other array; a longer position table is allowed.
    forward, backward = cases(2, 3, 4, 5, "float32")
    lawtools.assert_shapes_refused(forward, free={("weight", 0), ("positions", 0)})
    lawtools.assert_shapes_refused(backward, free={("dweight", 0), ("dpositions", 0)})
    for time in (0, 4, 6):  # no time, no multiple, longer than the table
        with pytest.raises(ShapeError):
            _kernels.embedding_forward(*list(inputs(2, 3, 4, 5, "float32").values()), time, y=blank((6, 5), "float32"))
        with pytest.raises(ShapeError):
            _kernels.embedding_backward(backward.arrays["tokens"], backward.arrays["dy"], time,
                                        dweight=backward.arrays["dweight"], dpositions=backward.arrays["dpositions"])


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_positions_get_the_same_where_nobody_wants_the_rows_of_tokens(dtype):
    _, whole = cases(3, 5, 7, 70, dtype)
    expected = whole.run()["dpositions"].copy()
    _, alone = cases(3, 5, 7, 70, dtype)
    a = alone.arrays
    _kernels.embedding_backward(a["tokens"], a["dy"], 5, dweight=None, dpositions=a["dpositions"])
    lawtools.assert_same_bits(a["dpositions"], expected)
