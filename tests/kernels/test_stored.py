"""Weights read as they lie in files: a product with them is the product with their expanded copy, bit for bit."""
import pickle

import numpy as np
import pytest
from lawtools import THREADS, assert_same_bits, blank, draw, misaligned, threads

from cllm import _kernels as kernels
from cllm.errors import DtypeError, ShapeError
from cllm.weights.blocks import BYTES, WEIGHTS, expanded
from cllm.weights.dtypes import RAW, widened
from cllm.weights.stored import KINDS, Stored

# Rows, elements of a row: around a register's lanes, a tile, the 64 that are unpacked at once, a block of depth, and one that
# is worth several threads; blocks need whole 32.
SHAPES = [(1, 32), (3, 64), (17, 96), (49, 32), (50, 544), (97, 1056), (400, 288)]
ODD = [(1, 1), (5, 7), (48, 31), (31, 65), (47, 513), (129, 515)]


def bytes_of(kind, rows, length, seed=0):
    """Rows of random bytes of that kind whose numbers are finite, subnormal ones among them."""
    rng = np.random.default_rng(seed)
    if kind in BYTES:
        data = rng.integers(0, 256, (rows, length // WEIGHTS, BYTES[kind]), np.uint8)
        for at in (0, 2) if kind == "Q4_1" else (0,):
            scales = rng.normal(0, 0.05, data.shape[:2]).astype("<f2")
            scales[rng.random(scales.shape) < 0.1] = np.float16(3e-7)
            data[:, :, at:at + 2] = scales[..., None].view(np.uint8)
        return data.reshape(rows, -1)
    if kind == "F32":
        return draw((rows, length), "float32", seed).view(np.uint8)
    bits = rng.integers(0, 1 << 16, (rows, length)).astype(np.uint16)
    largest = 0x7c00 if kind == "F16" else 0x7f80
    bits[(bits & largest) == largest] &= 0x83ff
    if kind == "BF16":
        large = (bits & 0x7fff) > 0x4380  # beyond 2^8, whose products leave the range
        bits[large] = (bits[large] & 0x80ff) | 0x3f00
    return bits.view(np.uint8)


def numbers(kind, data):
    """What the bytes mean, in float32."""
    if kind in BYTES:
        return expanded(data, kind)
    return np.ascontiguousarray(widened(data.view(RAW[kind]), kind).astype(np.float32))


def made(kind, rows, length, turned=False, seed=0):
    """A matrix of one kind, and its expanded copy."""
    data = bytes_of(kind, rows, length, seed)
    whole = numbers(kind, data)
    return Stored(((kind, data, None),), length, turned), np.ascontiguousarray(whole.T if turned else whole)


def room(n, shape):
    return blank(kernels.linear_workspace(n, *shape, kernels.get_threads(), 4), "float32")


def products(x, dy, weight, rounds=0):
    """x W + b, dy W^T, and the second with a bias, as a head has it."""
    n, (inside, outside) = len(x), weight.shape
    y, dx, logits = (blank((n, columns), "float32") for columns in (outside, inside, inside))
    kernels.linear_forward(x, weight, draw(outside, "float32", 5), rounds, y=y, workspace=room(n, weight.shape))
    kernels.linear_backward_input(dy, weight, None, rounds, dx=dx, workspace=room(n, weight.shape))
    kernels.linear_backward_input(dy, weight, draw(inside, "float32", 6), rounds, dx=logits, workspace=room(n, weight.shape))
    return y, dx, logits


def assert_equal_products(matrix, whole, n=37, rounds=0):
    x, dy = draw((n, whole.shape[0]), "float32", 1), draw((n, whole.shape[1]), "float32", 2)
    for what, got, expected in zip(("y", "dx", "logits"), products(x, dy, matrix, rounds), products(x, dy, whole, rounds),
                                   strict=True):
        assert_same_bits(got, expected, f"{what} of {matrix!r}")


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_with_the_expanded_copy(kind):
    for rows, length in SHAPES + ([] if kind in BYTES else ODD):
        for turned in (False, True):
            matrix, whole = made(kind, rows, length, turned)
            assert matrix.shape == whole.shape
            assert_same_bits(np.asarray(matrix), whole, repr(matrix))
            assert_equal_products(matrix, whole)
            assert_equal_products(matrix, whole, n=1)
        for rounds in (1, 2):
            assert_equal_products(matrix, whole, n=5, rounds=rounds)


@pytest.mark.parametrize("kind", ["BF16", "Q4_1"])
def test_threads_and_addresses_change_no_bit(kind):
    for turned in (False, True):
        matrix, whole = made(kind, 400, 1056, turned)
        x, dy = draw((250, whole.shape[0]), "float32", 1), draw((250, whole.shape[1]), "float32", 2)
        expected = products(x, dy, whole)
        moved = Stored(((kind, misaligned(matrix.parts[0][1], 3), None),), 1056, turned)
        for n in THREADS:
            with threads(n):
                for got, must in zip(products(x, dy, moved), expected, strict=True):
                    assert_same_bits(got, must, f"{n} threads")


@pytest.mark.parametrize("turned", [False, True])
def test_pieces_of_several_kinds_in_another_order(turned, monkeypatch):
    rng = np.random.default_rng(3)
    pieces, parts = [], []
    for kind, rows, ordered in (("Q4_1", 50, True), ("Q8_0", 7, False), ("BF16", 30, True), ("F32", 33, False)):
        data = bytes_of(kind, rows, 96, seed=rows)
        order = rng.permutation(rows).astype(np.int32) if ordered else None
        pieces.append((kind, data, order))
        parts.append(numbers(kind, data)[slice(None) if order is None else order])
    whole = np.concatenate(parts)
    matrix = Stored(tuple(pieces), 96, turned)
    whole = np.ascontiguousarray(whole.T if turned else whole)
    assert_equal_products(matrix, whole)
    assert matrix.nbytes == sum(data.nbytes + (0 if order is None else order.nbytes) for _, data, order in pieces)
    again = pickle.loads(pickle.dumps(matrix))
    assert_same_bits(np.asarray(again), whole)
    assert_same_bits(matrix[5:9], whole[5:9])
    monkeypatch.setattr("cllm.weights.stored.PIECE_BYTES", 8 * whole.shape[1])
    assert_same_bits(np.concatenate(list(matrix.pieces())), whole.reshape(-1))
    assert (matrix == whole).all() and (whole == matrix).all() and ((2 * matrix - whole) == whole).all()
    with pytest.raises(ValueError, match="read-only"):
        matrix *= 2
    assert matrix[2:2].shape == (0, whole.shape[1]) and np.array_equal(matrix[..., 3:5], whole[..., 3:5])


def test_a_result_in_bfloat16_takes_columns_some_at_a_time():
    for turned in (False, True):
        matrix, whole = made("Q8_0", 800, 832, turned)
        x = draw((9, whole.shape[0]), "float32", 1)
        found = []
        for weight in (matrix, whole):
            y = np.zeros((9, whole.shape[1]), np.uint16)
            workspace = blank(kernels.linear_workspace(9, *whole.shape, kernels.get_threads(), 4, True), "float32")
            kernels.linear_forward(x, weight, draw(whole.shape[1], "float32", 5), True, y=y, workspace=workspace)
            found.append(y)
        assert_same_bits(*found)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_rows_are_looked_up(kind):
    matrix, whole = made(kind, 30, 64)
    tokens = np.random.default_rng(1).integers(0, 30, 24).astype(np.int32)
    for positions, scale in ((None, 1.0), (draw((12, 64), "float32", 4), 1.0), (None, 3.5)):
        found = []
        for weight in (matrix, whole):
            y = blank((24, 64), "float32")
            kernels.embedding_forward(tokens, weight, positions, 12, scale, y=y)
            found.append(y)
        assert_same_bits(*found)


def test_what_cannot_be_read_is_refused():
    data = bytes_of("Q8_0", 3, 64)
    for pieces, length, error, match in (
            ((("Q5_K", data, None),), 64, DtypeError, "must be of F32, F16, BF16, Q8_0, Q4_0, Q4_1; got 'Q5_K'"),
            ((("Q8_0", data, None),), 65, ShapeError, "rows of 65 elements of Q8_0 must be whole, 32 at a time"),
            ((("Q8_0", data, None),), 96, ShapeError, "got 68 bytes"),
            ((("Q8_0", data, np.array([0, 3], np.int32)),), 64, ShapeError, "must be named from 0 to 2; got 3")):
        with pytest.raises(error, match=match):
            Stored(pieces, length)
    matrix, whole = made("Q8_0", 3, 64, turned=True)
    with pytest.raises(DtypeError, match="weight must be an array in float64"):
        kernels.linear_forward(draw((2, 64)), matrix, None, y=blank((2, 3)), workspace=blank(10_000))
    with pytest.raises(ShapeError, match="rows of weight must be 63"):
        kernels.linear_forward(draw((2, 63), "float32"), matrix, None, y=blank((2, 3), "float32"), workspace=room(2, (64, 3)))
    with pytest.raises(DtypeError, match="its rows those of tokens"):
        kernels.embedding_forward(np.zeros(2, np.int32), matrix, None, 2, y=blank((2, 3), "float32"))
    with pytest.raises(ShapeError, match="rows must be of 64"):
        kernels.stored_values(matrix, 60, y=blank((5, 3), "float32"))
    with pytest.raises(DtypeError, match="weight must be float32 here"):
        kernels.linear_forward(draw((2, 64), "float32"), np.zeros((64, 3), np.uint16), None, y=blank((2, 3), "float32"),
                               workspace=room(2, (64, 3)))
