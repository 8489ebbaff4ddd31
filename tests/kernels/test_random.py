"""Dropout: the published vectors of its generator, its numbering, bits."""
import lawtools
import numpy as np
import pytest
from lawtools import blank, draw

from cllm import _kernels
from cllm.errors import ConfigError

# Known answers of philox4x32-10 in the Random123 distribution (tests/kat_vectors): counter, key, words.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]
# Around a vector, a span of factors (1024), and enough for threads.
SHAPES = [(0, 4), (1, 1), (3, 5), (1, 15), (2, 512), (1, 1023), (1, 1025), (9, 33), (33, 1001)]
SITE = 5


def philox(counter, key):
    """The paper's definition, with Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c3 ^ k1, a & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def key_of(seed=7, step=3, first_row=0):
    return np.array([seed, step, first_row], "uint64")


def factors(n, c, dtype="float64", rate=0.25, key=None, site=SITE):
    """What dropout multiplies by."""
    y = blank((n, c), dtype)
    _kernels.dropout_forward(np.ones((n, c), dtype), key_of() if key is None else key, site, rate, y=y)
    return y


def cases(n, c, dtype):
    given = {"x": draw((n, c), dtype, 0), "branch": draw((n, c), dtype, 1), "y": blank((n, c), dtype)}

    def plain(a, first):
        _kernels.dropout_forward(a["branch"], key_of(first_row=100 + first), SITE, 0.3, y=a["y"])

    def back(a, first):
        _kernels.dropout_backward(a["branch"], key_of(first_row=100 + first), SITE, 0.3, dx=a["y"])

    def residual(a, first):
        _kernels.residual_dropout_forward(a["x"], a["branch"], key_of(first_row=100 + first), SITE, 0.3, y=a["y"])

    for call, names in ((plain, ("branch", "y")), (back, ("branch", "y")), (residual, ("x", "branch", "y"))):
        yield lawtools.Case(call, {name: given[name] for name in names}, rows=names, writes=("y",))


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_the_published_vectors(counter, key, words):
    assert philox(counter, key) == words
    assert list(_kernels.philox4x32(np.array(counter, "uint32"), np.array(key, "uint32"))) == words


@pytest.mark.parametrize("seed, step, first_row", [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**40 + 9, 2**33 + 1)])
def test_each_element_has_its_own_number(seed, step, first_row):
    n, c, rate = 3, 7, 0.4
    kept = factors(n, c, rate=rate, key=key_of(seed, step, first_row)) > 0
    for row in range(n):
        for column in range(c):
            number = (first_row + row) * c + column
            counter = [number // 4 % 2**32, number // 4 >> 32, step % 2**32, SITE]
            word = philox(counter, [seed % 2**32, (seed >> 32) ^ (step >> 32)])[number % 4]
            assert kept[row, column] == (word >= int(rate * 2**32)), (row, column)


def test_seed_step_site_and_row_each_change_the_mask():
    masks = [factors(4, 64, key=key_of(*key), site=site).tobytes()
             for key, site in (((7, 3, 0), 5), ((8, 3, 0), 5), ((7, 4, 0), 5), ((7, 3, 1), 5), ((7, 3, 0), 6))]
    assert len(set(masks)) == 5


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_and_scale(rate, dtype):
    y = factors(200, 1000, dtype, rate)
    assert set(np.unique(y)) == {0, np.dtype(dtype).type(1 / (1 - rate))}
    # Five standard deviations of 200 000 draws.
    assert abs((y == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / y.size)
    assert abs(y.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / y.size)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("n, c", SHAPES)
def test_forward_backward_and_residual_share_the_mask(n, c, dtype):
    x, branch = draw((n, c), dtype, 0), draw((n, c), dtype, 1)
    expected = branch * factors(n, c, dtype)
    y, dx, total = blank((n, c), dtype), blank((n, c), dtype), blank((n, c), dtype)
    _kernels.dropout_forward(branch, key_of(), SITE, 0.25, y=y)
    _kernels.dropout_backward(branch, key_of(), SITE, 0.25, dx=dx)
    _kernels.residual_dropout_forward(x, branch, key_of(), SITE, 0.25, y=total)
    lawtools.assert_same_bits(y, expected)
    lawtools.assert_same_bits(dx, expected)
    lawtools.assert_close(total, x.astype("float64") + expected, float32=1e-7, float64=3e-16)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits(shape, dtype):
    for case in cases(*shape, dtype):
        lawtools.assert_law_of_bits(case)


def test_backward_equals_finite_differences():
    x, dy, y, dx = draw((3, 7)), draw((3, 7), seed=1), blank((3, 7)), blank((3, 7))

    def loss():
        _kernels.dropout_forward(x, key_of(), SITE, 0.3, y=y)
        return lawtools.weighted_sum(y, dy)

    _kernels.dropout_backward(dy, key_of(), SITE, 0.3, dx=dx)
    lawtools.assert_gradient(dx, lawtools.finite_differences(loss, x))


def test_outputs_may_be_their_inputs():
    for case in cases(3, 19, "float32"):
        expected = case.run()["y"]
        arrays = {name: array.copy() for name, array in case.arrays.items()}
        arrays["y"] = arrays["branch"]
        case.call(arrays, 0)
        lawtools.assert_same_bits(arrays["y"], expected)


def test_nan_and_infinity_are_seen_even_where_dropped():
    for value in (np.nan, np.inf):
        y = blank((1, 64))
        _kernels.dropout_forward(np.full((1, 64), value), key_of(), SITE, 0.5, y=y)
        assert not np.isfinite(y).any()


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, np.nan])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ConfigError, match="rate"):
        factors(2, 3, rate=rate)


def test_wrong_shapes_are_refused():
    for case in cases(3, 5, "float32"):
        lawtools.assert_shapes_refused(case)
    with pytest.raises(ValueError, match="key"):
        factors(2, 3, key=np.zeros(2, "uint64"))
    with pytest.raises(ValueError, match="counter"):
        _kernels.philox4x32(np.zeros(3, "uint32"), np.zeros(2, "uint32"))
