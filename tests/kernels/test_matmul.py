"""Matrix products against NumPy in float64, finite differences, and the law of bits."""
import numpy as np
import pytest

from cllm import _kernels as kernels
from cllm.errors import ShapeError

DTYPES = ["float32", "float64"]
# N, I, O. The register tile is 4 to 14 rows by 4 to 32 columns, a block 256 deep and 512 wide, whatever the machine:
# sizes around each of them, and one that is worth three threads.
SHAPES = [
    (0, 3, 4), (5, 0, 3), (3, 4, 0), (1, 1, 1), (1, 7, 1), (5, 7, 3), (3, 1, 5), (6, 16, 15), (13, 13, 31),
    (14, 14, 32), (15, 15, 33), (29, 255, 31), (33, 257, 65), (64, 96, 48), (255, 33, 17), (256, 13, 14),
    (257, 31, 47), (31, 20, 511), (2, 17, 512), (17, 3, 513), (70, 513, 40), (40, 515, 520), (333, 129, 250), (5, 1100, 20),
    (5, 20, 1100), (1100, 5, 20), (3, 40, 830),
]
# S, H, D and N of the block-diagonal form.
BLOCKS = [(3, 2, 4, 0), (1, 1, 1, 1), (3, 2, 5, 7), (1, 3, 16, 30), (3, 2, 33, 40), (3, 4, 64, 337), (2, 3, 14, 700)]


@pytest.fixture(autouse=True)
def restore_threads():
    before = kernels.get_threads()
    yield
    kernels.set_threads(before)


def draw(shape, dtype, seed, shift=0):
    """Normal numbers; with `shift`, in a buffer that begins `shift` elements after an aligned address."""
    room = np.empty(int(np.prod(shape)) + shift, dtype)
    array = room[shift:].reshape(shape)
    array[...] = np.random.default_rng(seed).standard_normal(shape)
    return array


def blank(shape, dtype, shift=0):
    """An array full of NaN, so that whatever is not written shows."""
    array = draw(shape, dtype, 0, shift)
    array.fill(np.nan)
    return array


def linear_room(rows, n_in, n_out, dtype, shift=0):
    count = kernels.linear_workspace(rows, n_in, n_out, kernels.get_threads(), np.dtype(dtype).itemsize)
    return blank((count,), dtype, shift)


def block_room(rows, parts, heads, dim, dtype, shift=0):
    count = kernels.block_linear_workspace(rows, parts, heads, dim, kernels.get_threads(), np.dtype(dtype).itemsize)
    return blank((count,), dtype, shift)


def forward(x, weight, bias, shift=0):
    y = blank((len(x), weight.shape[1]), x.dtype, shift)
    kernels.linear_forward(x, weight, bias, y=y, workspace=linear_room(len(x), *weight.shape, x.dtype, shift))
    return y


def backward_input(dy, weight, shift=0):
    dx = blank((len(dy), weight.shape[0]), dy.dtype, shift)
    kernels.linear_backward_input(dy, weight, dx=dx, workspace=linear_room(len(dy), *weight.shape, dy.dtype, shift))
    return dx


def backward_weight(x, dy, dweight, dbias, shift=0):
    """Copies of dweight and dbias with the gradient added."""
    new = draw(dweight.shape, x.dtype, 0, shift)
    new[...] = dweight
    new_bias = None if dbias is None else dbias.copy()
    room = linear_room(len(x), x.shape[1], dy.shape[1], x.dtype, shift)
    kernels.linear_backward_weight(x, dy, dweight=new, dbias=new_bias, workspace=room)
    return new, new_bias


def block_forward(x, weight, bias, shift=0):
    parts, heads, dim, _ = weight.shape
    y = blank((len(x), parts * heads * dim), x.dtype, shift)
    kernels.block_linear_forward(x, weight, bias, y=y,
                                 workspace=block_room(len(x), parts, heads, dim, x.dtype, shift))
    return y


def block_backward_input(dy, weight, shift=0):
    parts, heads, dim, _ = weight.shape
    dx = blank((len(dy), heads * dim), dy.dtype, shift)
    kernels.block_linear_backward_input(dy, weight, dx=dx,
                                        workspace=block_room(len(dy), parts, heads, dim, dy.dtype, shift))
    return dx


def block_backward_weight(x, dy, dweight, dbias, shift=0):
    new, new_bias = dweight.copy(), None if dbias is None else dbias.copy()
    parts, heads, dim, _ = dweight.shape
    kernels.block_linear_backward_weight(x, dy, dweight=new, dbias=new_bias,
                                         workspace=block_room(len(x), parts, heads, dim, x.dtype, shift))
    return new, new_bias


def full_weight(weight):
    """The (C, S*C) matrix whose product with x is the block-diagonal form."""
    parts, heads, dim, _ = weight.shape
    full = np.zeros((heads * dim, parts * heads * dim))
    for s in range(parts):
        for h in range(heads):
            rows, column = slice(h * dim, (h + 1) * dim), (s * heads + h) * dim
            full[rows, column:column + dim] = weight[s, h].T
    return full


def wide(array):
    return np.asarray(array, np.float64)


def assert_near(got, a, b, start=0.0):
    """got = start + a @ b as well as a sum of this length in got's precision can be."""
    want = start + wide(a) @ wide(b)
    scale = np.abs(start) + np.abs(wide(a)) @ np.abs(wide(b))
    bound = 2 * (np.shape(a)[1] + 1) * np.finfo(got.dtype).eps * scale
    assert np.isfinite(got).all()
    assert (np.abs(got - want) <= bound).all()


def assert_same_bits(got, want):
    np.testing.assert_array_equal(np.ascontiguousarray(got).view(np.uint8), np.ascontiguousarray(want).view(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, i, o", SHAPES)
def test_products_equal_numpy(n, i, o, dtype):
    x, weight, dy = draw((n, i), dtype, 1), draw((i, o), dtype, 2), draw((n, o), dtype, 3)
    bias, dweight, dbias = draw((o,), dtype, 4), draw((i, o), dtype, 5), draw((o,), dtype, 6)
    assert_near(forward(x, weight, None), x, weight)
    assert_near(forward(x, weight, bias), x, weight, wide(bias))
    assert_near(backward_input(dy, weight), dy, weight.T)
    got, got_bias = backward_weight(x, dy, dweight, dbias)
    assert_near(got, x.T, dy, wide(dweight))
    assert_near(got_bias[None], np.ones((1, n)), dy, wide(dbias)[None])
    assert_same_bits(backward_weight(x, dy, dweight, None)[0], got)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, i, o", SHAPES)
def test_bias_of_a_weight_that_is_kept_turned(n, i, o, dtype):
    """dy W^T + bias is the forward of the turned weight, bit for bit, and the bias's gradient that of a linear layer."""
    dy, weight, bias = draw((n, o), dtype, 1), draw((i, o), dtype, 2), draw((i,), dtype, 3)
    dx = blank((n, i), dtype)
    kernels.linear_backward_input(dy, weight, bias, dx=dx, workspace=linear_room(n, i, o, dtype))
    assert dx.tobytes() == forward(dy, np.ascontiguousarray(weight.T), bias).tobytes()
    dweight, expected, dbias = (draw(shape, dtype, 4) for shape in ((i, o), (o,), (o,)))
    expected[...] = dbias
    kernels.linear_backward_weight(draw((n, i), dtype, 5), dy, dweight=dweight, dbias=expected,
                                   workspace=linear_room(n, i, o, dtype))
    for threads in (1, 3):
        kernels.set_threads(threads)
        again = dbias.copy()
        kernels.linear_backward_bias(dy, dbias=again)
        assert again.tobytes() == expected.tobytes()
    with pytest.raises(ShapeError, match="length of dbias"):
        kernels.linear_backward_bias(dy, dbias=np.zeros(o + 1, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("s, h, d, n", BLOCKS)
def test_block_products_equal_numpy(s, h, d, n, dtype):
    x, weight, dy = draw((n, h * d), dtype, 1), draw((s, h, d, d), dtype, 2), draw((n, s * h * d), dtype, 3)
    bias, dweight, dbias = draw((s * h * d,), dtype, 4), draw((s, h, d, d), dtype, 5), draw((s * h * d,), dtype, 6)
    full = full_weight(weight)
    assert_near(block_forward(x, weight, None), x, full)
    assert_near(block_forward(x, weight, bias), x, full, wide(bias))
    assert_near(block_backward_input(dy, weight), dy, full.T)
    got, got_bias = block_backward_weight(x, dy, dweight, dbias)
    for part in range(s):
        for head in range(h):
            column = (part * h + head) * d
            assert_near(got[part, head], dy[:, column:column + d].T, x[:, head * d:(head + 1) * d],
                        wide(dweight[part, head]))
    assert_near(got_bias[None], np.ones((1, n)), dy, wide(dbias)[None])


def numeric_gradient(loss, array, step=1e-6):
    """Central differences of a scalar function of `array`, which is changed in place and put back."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        here = array[index]
        array[index] = here + step
        above = loss()
        array[index] = here - step
        gradient[index] = (above - loss()) / (2 * step)
        array[index] = here
    return gradient


def assert_gradient(analytic, numeric):
    bound = 1e-6 * np.maximum(np.abs(analytic), np.abs(numeric)) + 1e-9
    assert (np.abs(analytic - numeric) <= bound).all()


def test_backward_equals_finite_differences():
    # The loss sum(y * dy) is linear in each argument, so central differences are exact but for rounding.
    x, weight, bias, dy = (draw(shape, "float64", seed) for seed, shape in enumerate([(5, 4), (4, 3), (3,), (5, 3)]))

    def loss():
        return float((forward(x, weight, bias) * dy).sum())

    dweight, dbias = backward_weight(x, dy, np.zeros_like(weight), np.zeros_like(bias))
    assert_gradient(backward_input(dy, weight), numeric_gradient(loss, x, 1e-3))
    assert_gradient(dweight, numeric_gradient(loss, weight, 1e-3))
    assert_gradient(dbias, numeric_gradient(loss, bias, 1e-3))


def test_block_backward_equals_finite_differences():
    x, weight, bias, dy = (draw(shape, "float64", seed) for seed, shape in
                           enumerate([(4, 6), (2, 2, 3, 3), (12,), (4, 12)]))

    def loss():
        return float((block_forward(x, weight, bias) * dy).sum())

    dweight, dbias = block_backward_weight(x, dy, np.zeros_like(weight), np.zeros_like(bias))
    assert_gradient(block_backward_input(dy, weight), numeric_gradient(loss, x, 1e-3))
    assert_gradient(dweight, numeric_gradient(loss, weight, 1e-3))
    assert_gradient(dbias, numeric_gradient(loss, bias, 1e-3))


def all_linear(x, weight, bias, dy, dweight, dbias, shift=0):
    return (forward(x, weight, bias, shift), forward(x, weight, None, shift), backward_input(dy, weight, shift),
            *backward_weight(x, dy, dweight, dbias, shift))


def all_block(x, weight, bias, dy, dweight, dbias, shift=0):
    return (block_forward(x, weight, bias, shift), block_forward(x, weight, None, shift),
            block_backward_input(dy, weight, shift), *block_backward_weight(x, dy, dweight, dbias, shift))


def case(kind, dtype, shift=0):
    """The arguments of all_linear or all_block, large enough that several threads take part, each in several shares."""
    n, i, o, weight = (810, 131, 1163, (131, 1163)) if kind == "linear" else (700, 144, 432, (3, 3, 48, 48))
    shapes = [(n, i), weight, (o,), (n, o), weight, (o,)]
    return [draw(shape, dtype, seed, shift) for seed, shape in enumerate(shapes)]


PRODUCTS = {"linear": all_linear, "block": all_block}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", PRODUCTS)
def test_bits_do_not_depend_on_threads(kind, dtype):
    results = []
    for threads in (1, 2, 3):
        kernels.set_threads(threads)
        results.append(PRODUCTS[kind](*case(kind, dtype)))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", PRODUCTS)
def test_bits_do_not_depend_on_the_address(kind, dtype):
    kernels.set_threads(2)
    for got, want in zip(PRODUCTS[kind](*case(kind, dtype, 1), shift=1), PRODUCTS[kind](*case(kind, dtype)), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("first", [1, 3, 257])
def test_bits_of_a_row_do_not_depend_on_where_it_stands(kind, dtype, first):
    x, weight, bias, dy, _, _ = case(kind, dtype)
    run, run_back = (forward, backward_input) if kind == "linear" else (block_forward, block_backward_input)
    assert_same_bits(run(x[first:], weight, bias), run(x, weight, bias)[first:])
    assert_same_bits(run_back(dy[first:], weight), run_back(dy, weight)[first:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("cut", [0, 1, 5, 13, 200, 256, 257])
def test_rows_in_two_calls_give_the_bits_of_one(kind, dtype, cut):
    x, _, _, dy, dweight, dbias = case(kind, dtype)
    run = backward_weight if kind == "linear" else block_backward_weight
    whole = run(x, dy, dweight, dbias)
    halves = run(x[cut:], dy[cut:], *run(x[:cut], dy[:cut], dweight, dbias))
    for got, want in zip(halves, whole, strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_column_has_the_same_bits_alone(dtype):
    # The chain of an element cannot tell a product of one column from one of 517.
    x, weight, bias, _, _, _ = case("linear", dtype)
    whole = forward(x, weight, bias)
    for column in (0, 15, 16, 31, 32, 511, 512, 516):
        one = forward(x, np.ascontiguousarray(weight[:, column:column + 1]), bias[column:column + 1].copy())
        assert_same_bits(one[:, 0], whole[:, column])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_go_where_they_belong_and_nowhere_else(value):
    n, i, o = 17, 37, 35
    x, weight, dy = draw((n, i), "float32", 1), draw((i, o), "float32", 2), draw((n, o), "float32", 3)
    x[n - 1, i - 1] = value
    dy[n - 1, o - 1] = value
    y, dx = forward(x, weight, None), backward_input(dy, weight)
    assert not np.isfinite(y[n - 1]).any() and np.isfinite(y[:n - 1]).all()
    assert not np.isfinite(dx[n - 1]).any() and np.isfinite(dx[:n - 1]).all()
    dweight, dbias = backward_weight(x, dy, np.zeros_like(weight), np.zeros(o, "float32"))
    bad = np.zeros((i, o), bool)
    bad[i - 1], bad[:, o - 1] = True, True
    np.testing.assert_array_equal(~np.isfinite(dweight), bad)
    np.testing.assert_array_equal(~np.isfinite(dbias), np.arange(o) == o - 1)


def test_nan_stays_in_its_block():
    x, weight = draw((20, 12), "float32", 1), draw((3, 3, 4, 4), "float32", 2)
    x[7, 5] = np.nan
    y = block_forward(x, weight, None)
    bad = np.zeros((20, 3, 3, 4), bool)
    bad[7, :, 1] = True
    np.testing.assert_array_equal(np.isnan(y).reshape(bad.shape), bad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, i, o", [(1, 1, 1), (15, 33, 31), (17, 14, 130), (300, 140, 550), (3, 40, 830), (9, 1030, 400)])
def test_nothing_is_written_outside(n, i, o, dtype):
    guard = 64
    kernels.set_threads(2)

    def guarded(count):
        return np.full(count + 2 * guard, 7, dtype)

    x, weight, dy = draw((n, i), dtype, 1), draw((i, o), dtype, 2), draw((n, o), dtype, 3)
    room = kernels.linear_workspace(n, i, o, 2, np.dtype(dtype).itemsize)
    frames = {name: guarded(count) for name, count in
              {"y": n * o, "dx": n * i, "dweight": i * o, "dbias": o, "workspace": room}.items()}
    inner = {name: frame[guard:-guard] for name, frame in frames.items()}
    kernels.linear_forward(x, weight, None, y=inner["y"].reshape(n, o), workspace=inner["workspace"])
    kernels.linear_backward_input(dy, weight, dx=inner["dx"].reshape(n, i), workspace=inner["workspace"])
    kernels.linear_backward_weight(x, dy, dweight=inner["dweight"].reshape(i, o), dbias=inner["dbias"],
                                   workspace=inner["workspace"])
    for name, frame in frames.items():
        assert (frame[:guard] == 7).all() and (frame[-guard:] == 7).all(), name


def test_workspace_never_shrinks_with_more_rows_and_stays_small():
    for itemsize in (4, 8):
        sizes = [kernels.linear_workspace(n, 512, 2048, 2, itemsize) for n in (0, 1, 64, 255, 256, 257, 4096, 10**6)]
        assert sizes == sorted(sizes)
        assert sizes[-1] * itemsize <= 2 * 4 * 2**20
        sizes = [kernels.block_linear_workspace(n, 3, 8, 64, 2, itemsize) for n in (0, 1, 64, 257, 4096, 10**6)]
        assert sizes == sorted(sizes)
        assert sizes[-1] * itemsize <= 2 * 4 * 2**20


LINEAR_MISFITS = [
    ("linear_forward", ((4, 3), (4, 5), (5,)), {"y": (4, 5)}, "rows of weight must be 3; got 4"),
    ("linear_forward", ((4, 3), (3, 5), (4,)), {"y": (4, 5)}, "length of bias must be 5; got 4"),
    ("linear_forward", ((4, 3), (3, 5), None), {"y": (3, 5)}, "rows of y must be 4; got 3"),
    ("linear_forward", ((4, 3), (3, 5), None), {"y": (4, 6)}, "columns of y must be 5; got 6"),
    ("linear_backward_input", ((4, 5), (3, 6)), {"dx": (4, 3)}, "columns of weight must be 5; got 6"),
    ("linear_backward_input", ((4, 5), (3, 5)), {"dx": (5, 3)}, "rows of dx must be 4; got 5"),
    ("linear_backward_input", ((4, 5), (3, 5)), {"dx": (4, 5)}, "columns of dx must be 3; got 5"),
    ("linear_backward_input", ((4, 5), (3, 5), (5,)), {"dx": (4, 3)}, "length of bias must be 3; got 5"),
    ("linear_backward_weight", ((4, 3), (5, 5)), {"dweight": (3, 5), "dbias": None}, "rows of dy must be 4; got 5"),
    ("linear_backward_weight", ((4, 3), (4, 5)), {"dweight": (5, 3), "dbias": None},
     "rows of dweight must be 3; got 5"),
    ("linear_backward_weight", ((4, 3), (4, 5)), {"dweight": (3, 4), "dbias": None},
     "columns of dweight must be 5; got 4"),
    ("linear_backward_weight", ((4, 3), (4, 5)), {"dweight": (3, 5), "dbias": (3,)},
     "length of dbias must be 5; got 3"),
    ("block_linear_forward", ((4, 6), (1, 2, 3, 4), None), {"y": (4, 6)}, "last axis of weight must be 3; got 4"),
    ("block_linear_forward", ((4, 5), (2, 2, 3, 3), None), {"y": (4, 12)}, "columns of x must be 6; got 5"),
    ("block_linear_forward", ((4, 6), (2, 2, 3, 3), None), {"y": (4, 6)}, "columns of y must be 12; got 6"),
    ("block_linear_forward", ((4, 6), (2, 2, 3, 3), None), {"y": (5, 12)}, "rows of y must be 4; got 5"),
    ("block_linear_forward", ((4, 6), (2, 2, 3, 3), (6,)), {"y": (4, 12)}, "length of bias must be 12; got 6"),
    ("block_linear_backward_input", ((4, 6), (2, 2, 3, 3)), {"dx": (4, 6)}, "columns of y must be 12; got 6"),
    ("block_linear_backward_input", ((4, 12), (2, 2, 3, 3)), {"dx": (4, 12)}, "columns of x must be 6; got 12"),
    ("block_linear_backward_input", ((4, 12), (2, 2, 3, 3)), {"dx": (3, 6)}, "rows of dx must be 4; got 3"),
    ("block_linear_backward_weight", ((4, 6), (5, 12)), {"dweight": (2, 2, 3, 3), "dbias": None},
     "rows of dy must be 4; got 5"),
    ("block_linear_backward_weight", ((4, 6), (4, 12)), {"dweight": (2, 2, 3, 2), "dbias": None},
     "last axis of weight must be 3; got 2"),
    ("block_linear_backward_weight", ((4, 6), (4, 12)), {"dweight": (2, 2, 3, 3), "dbias": (6,)},
     "length of dbias must be 12; got 6"),
]


@pytest.mark.parametrize("name, read, written, message", LINEAR_MISFITS)
def test_shapes_that_do_not_fit_are_refused_and_nothing_is_written(name, read, written, message):
    given = [None if shape is None else draw(shape, "float32", 1) for shape in read]
    outputs = {key: None if shape is None else draw(shape, "float32", 2) for key, shape in written.items()}
    before = {key: array.copy() for key, array in outputs.items() if array is not None}
    with pytest.raises(ShapeError, match=message) as caught:
        getattr(kernels, name)(*given, **outputs, workspace=np.empty(100000, "float32"))
    assert caught.value.where == name
    for key, array in before.items():
        assert_same_bits(outputs[key], array)


@pytest.mark.parametrize("name, read, written", [
    ("linear_forward", ((4, 3), (3, 5), None), {"y": (4, 5)}),
    ("linear_backward_input", ((4, 5), (3, 5)), {"dx": (4, 3)}),
    ("linear_backward_weight", ((4, 3), (4, 5)), {"dweight": (3, 5), "dbias": None}),
    ("block_linear_forward", ((4, 6), (2, 2, 3, 3), None), {"y": (4, 12)}),
    ("block_linear_backward_input", ((4, 12), (2, 2, 3, 3)), {"dx": (4, 6)}),
    ("block_linear_backward_weight", ((4, 6), (4, 12)), {"dweight": (2, 2, 3, 3), "dbias": None}),
])
def test_short_scratch_and_missing_arrays_are_refused(name, read, written):
    given = [None if shape is None else draw(shape, "float32", 1) for shape in read]
    outputs = {key: None if shape is None else draw(shape, "float32", 2) for key, shape in written.items()}
    with pytest.raises(ShapeError, match="workspace must have at least"):
        getattr(kernels, name)(*given, **outputs, workspace=np.empty(3, "float32"))
    with pytest.raises(TypeError):
        getattr(kernels, name)(*given, **outputs, workspace=None)
    output = next(key for key in outputs if outputs[key] is not None)
    with pytest.raises(TypeError):
        getattr(kernels, name)(*given, **{**outputs, output: None}, workspace=np.empty(100000, "float32"))


def test_the_comparison_can_fail():
    x, weight = draw((9, 40), "float32", 1), draw((40, 8), "float32", 2)
    y = forward(x, weight, None)
    y[3, 3] += 1e-3
    with pytest.raises(AssertionError):
        assert_near(y, x, weight)
    with pytest.raises(AssertionError):
        assert_same_bits(y, forward(x, weight, None))
    with pytest.raises(AssertionError):
        assert_gradient(np.array([1.0]), np.array([1.0 + 1e-5]))
