"""Compression kernels: bfloat16 against integer arithmetic, int8 within half a scale, bits under the laws."""
import lawtools
import numpy as np
import pytest
from lawtools import blank, draw

from cllm import _kernels
from cllm.errors import ShapeError

GROUP, CHUNK = 128, 16384
SITE = 5
ROUNDINGS = ("nearest", "stochastic")
SIZES = [0, 1, 7, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP + 5, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 77]


def bfloat16_bits(x):
    """Nearest, ties to even, in integers alone: the 16 bits to keep, plus one if the 16 to drop are over half a unit, or
    exactly half and the last kept is odd. NaN keeps its payload's upper part and becomes quiet."""
    u = np.asarray(x, "float32").view("uint32").astype("uint64")
    keep, drop = u >> 16, u & 0xFFFF
    rounded = keep + ((drop > 0x8000) | ((drop == 0x8000) & (keep & 1 == 1)))
    nan = (u & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, keep | 0x40, rounded).astype("uint16")


def to_bfloat16(x):
    y = np.full(x.size, 0xDEAD, "uint16")
    _kernels.compress_bfloat16(x, y=y)
    return y


def from_bfloat16(h, dtype="float32"):
    y = blank(h.size, dtype)
    _kernels.expand_bfloat16(h, y=y)
    return y


def rows_of(x):
    """One row where x has one axis: groups are cut from its start."""
    return x.reshape(1, -1) if x.ndim == 1 else x


def key_of(seed=7, step=3, first_row=0):
    return np.array([seed, step, first_row], "uint64")


def pack(x, rounding="nearest", key=None, site=SITE, elements_a_row=1):
    packed = np.full(_kernels.int8_bytes(*rows_of(x).shape), 0xAB, "uint8")
    if rounding == "nearest":
        _kernels.compress_int8(rows_of(x), y=packed)
    else:
        _kernels.compress_int8_stochastic(rows_of(x), key_of() if key is None else key, site, elements_a_row, y=packed)
    return packed


def unpack(packed, like):
    y = blank(like.shape, like.dtype)
    _kernels.expand_int8(packed, y=rows_of(y))
    return y


def int8_round_trip(x, rounding="nearest", **options):
    packed = pack(x, rounding, **options)
    return packed, unpack(packed, x)


def floats(bits):
    return np.array(bits, "uint32").view("float32")


SPECIAL = {
    "zeros": [0x00000000, 0x80000000],
    "ties": [0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000, 0x3F807FFF, 0x3F808001, 0x3F7F8000],
    "carry into the exponent": [0x3FFF8000, 0x3FFFFFFF, 0x00FF8000],
    "largest": [0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7FFFFF],  # from 0x7F7F8000 on: infinity
    "infinities": [0x7F800000, 0xFF800000],
    "NaN": [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFF80FFFF, 0x7F808000],
    "denormals": [0x00000001, 0x00007FFF, 0x00008000, 0x00008001, 0x00018000, 0x007FFFFF, 0x807FFFFF, 0x80000001],
}


@pytest.mark.parametrize("what", SPECIAL)
def test_bfloat16_at_the_edges(what):
    x = floats(SPECIAL[what])
    got = to_bfloat16(x)
    assert got.tolist() == bfloat16_bits(x).tolist()
    back = from_bfloat16(got)
    assert (back.view("uint32") == got.astype("uint32") << 16).all()
    if what == "NaN":
        assert np.isnan(back).all()
    if what == "largest":
        assert np.isfinite(back).tolist() == [True, True, False, False, False]


def test_bfloat16_of_bits_drawn_from_all():
    x = np.random.default_rng(0).integers(0, 2**32, 100_003, dtype="uint32").view("float32")
    assert (to_bfloat16(x) == bfloat16_bits(x)).all()


def test_every_bfloat16_comes_back_as_itself():
    every = np.arange(65536, dtype="uint16")
    back = from_bfloat16(every)
    again = to_bfloat16(back)
    nan = np.isnan(back)
    assert (again[~nan] == every[~nan]).all() and np.isnan(from_bfloat16(again[nan])).all()
    assert (from_bfloat16(every, "float64")[~nan] == back[~nan]).all()


def test_bfloat16_is_nearest():
    x = draw(5000, "float32", 1, 3.0)
    back = from_bfloat16(to_bfloat16(x)).astype("float64")
    assert (np.abs(back - x) <= np.abs(x) * 2.0**-8).all()
    h = to_bfloat16(x)
    for other in (h + np.uint16(1), h - np.uint16(1)):
        assert (np.abs(back - x) <= np.abs(from_bfloat16(other).astype("float64") - x)).all()


def test_a_float64_goes_through_float32():
    x = draw(3000, "float64", 2)
    assert (to_bfloat16(x) == bfloat16_bits(x.astype("float32"))).all()
    assert np.isinf(from_bfloat16(to_bfloat16(np.array([1e300, -1e300])))).all()
    packed, back = int8_round_trip(x)
    packed32, back32 = int8_round_trip(x.astype("float32"))
    assert (packed == packed32).all() and (back == back32).all()


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_law_of_bits_bfloat16(n, dtype):
    def compress(a, first):
        _kernels.compress_bfloat16(a["x"], y=a["h"])

    def expand(a, first):
        _kernels.expand_bfloat16(a["h"], y=a["y"])

    x = draw(n, dtype, 3)
    lawtools.assert_law_of_bits(lawtools.Case(compress, {"x": x, "h": np.zeros(n, "uint16")}, ("x", "h"), ("h",)))
    lawtools.assert_law_of_bits(lawtools.Case(expand, {"h": to_bfloat16(x), "y": blank(n, dtype)}, ("h", "y"), ("y",)))


# int8

@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rounding, most", [("nearest", 0.5), ("stochastic", 1.0)])
def test_int8_errs_by_half_a_scale_at_most_or_by_a_whole_one(rounding, most, n, dtype):
    x = draw(n, dtype, 4) * np.exp(draw(n, dtype, 5, 3.0))
    _, back = int8_round_trip(x, rounding)
    for start in range(0, n, GROUP):
        group, got = x[start:start + GROUP].astype("float32").astype("float64"), back[start:start + GROUP]
        scale = np.abs(group).max() / 127
        assert (np.abs(got - group) <= scale * most * (1 + 2e-5)).all()
        assert np.abs(got).max() == pytest.approx(np.abs(group).max(), rel=1e-6)


def test_int8_codes_are_nearest_ties_to_even():
    x = np.arange(-127, 1, dtype="float32")  # scale 1: whole numbers are codes
    assert (int8_round_trip(x)[1] == x).all()
    x = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, 0.49999, 0.50001], "float32")
    packed, back = int8_round_trip(x)
    assert back.tolist() == [127, 0, 2, 2, 0, -2, 0, 1]
    assert packed[:4].view("float32")[0] == 1 and packed[4:].view("int8").tolist() == [127, 0, 2, 2, 0, -2, 0, 1]


def test_an_outlier_spoils_its_group_alone():
    x = draw(3 * GROUP, "float32", 6)
    clean = int8_round_trip(x)[1]
    x[GROUP + 5] = 1e6
    spoiled = int8_round_trip(x)[1]
    assert (spoiled[:GROUP] == clean[:GROUP]).all() and (spoiled[2 * GROUP:] == clean[2 * GROUP:]).all()
    assert spoiled[GROUP + 5] == np.float32(1e6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 77, 127, 128, 300])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_group_with_nan_or_infinity_comes_back_as_nan(rounding, bad, place):
    x = draw(301, "float32", 7)
    x[place] = bad
    _, back = int8_round_trip(x, rounding)
    groups = np.arange(301) // GROUP
    assert (np.isnan(back) == (groups == place // GROUP)).all()


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-40, 1.1e-38, 2.0**-126, 2.0**-125, 1e-37, 3.7e-37, 1e-36, 1e-34, 1.9e-34,
                                     2e-34, 1e-30, 1.0, 1e30, 3.4028235e38])
@pytest.mark.parametrize("rounding, most", [("nearest", 0.5), ("stochastic", 1.0)])
def test_int8_of_every_magnitude(rounding, most, largest):
    """Groups below 2^-112 come back as zeros, all others within a scale: no code is out of range or NaN."""
    x = np.linspace(-1, 1, GROUP).astype("float32") * np.float32(largest)
    packed, back = int8_round_trip(x, rounding)
    assert np.isfinite(packed[:4].view("float32")).all()
    if largest < 2.0**-112:
        assert (back == 0).all()
    else:
        error = np.abs(back.astype("float64") - x).max()
        assert error <= largest / 127 * most * (1 + 2e-5)
        assert sorted(set(packed[4:].view("int8").tolist()))[0] == -127


def test_zero_and_minus_zero_are_zeros():
    _, back = int8_round_trip(np.array([0.0, -0.0, 0.0], "float32"))
    assert (back == 0).all()


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_bits_of_int8_depend_on_no_thread_and_no_address(rounding, n, dtype):
    x = draw(n, dtype, 8)
    packed, back = int8_round_trip(x, rounding)
    for threads in lawtools.THREADS:
        with lawtools.threads(threads):
            for shift in (0, 1):
                room = lawtools.misaligned(np.zeros(packed.size + 4, "uint8"), 0)[4 * shift:4 * shift + packed.size]
                room[...] = pack(lawtools.misaligned(x, shift), rounding)
                assert (room == packed).all()
                y = lawtools.misaligned(blank(n, dtype), shift)
                _kernels.expand_int8(room, y=rows_of(y))
                lawtools.assert_same_bits(y, back)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("columns", [1, 12, GROUP - 1, GROUP, GROUP + 1, 5 * GROUP + 3])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rows_are_packed_alike_together_and_apart(rounding, columns, dtype):
    """A cut between sequences changes no code and no scale, whether groups fill the sequences or not."""
    x = draw((7, columns), dtype, 9)
    whole = int8_round_trip(x, rounding, elements_a_row=columns)[1]
    for cut in (1, 3, 6):
        parts = [int8_round_trip(part, rounding, elements_a_row=columns, key=key_of(first_row=first))[1]
                 for first, part in ((0, x[:cut].copy()), (cut, x[cut:].copy()))]
        lawtools.assert_same_bits(np.concatenate(parts), whole)


def test_bytes_of_int8():
    for n, expected in ((0, 0), (1, 5), (128, 132), (129, 137), (256, 264), (10**6, 10**6 + 4 * 7813)):
        assert _kernels.int8_bytes(1, n) == expected
        assert _kernels.int8_bytes(3, n) == 3 * expected
    assert _kernels.int8_bytes(0, 128) == 0


def test_nothing_beyond_the_codes_is_written():
    x = draw((1, GROUP + 3), "float32", 10)
    for fill in (lambda y: _kernels.compress_int8(x, y=y),
                 lambda y: _kernels.compress_int8_stochastic(x, key_of(), SITE, 1, y=y)):
        room = np.full(_kernels.int8_bytes(*x.shape) + 32, 0x5A, "uint8")
        fill(room)
        assert (room[-32:] == 0x5A).all() and not (room[:-32] == 0x5A).all()


# int8, rounded at random

def words_of(numbers, key, site):
    """The sixteen bits of elements with these numbers in the whole batch, from the generator itself."""
    seed, step, _ = (int(k) for k in key)
    halves = []
    for number in numbers:
        counter = np.array([number // 8 & 0xFFFFFFFF, number // 8 >> 32, step & 0xFFFFFFFF, site], "uint32")
        words = _kernels.philox4x32(counter, np.array([seed & 0xFFFFFFFF, (seed >> 32) ^ (step >> 32)], "uint32"))
        halves.append(words[number % 8 // 2] >> 16 * (number % 2) & 0xFFFF)
    return np.array(halves)


@pytest.mark.parametrize("seed, step, first_row", [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**40 + 9, 2**33 + 1)])
@pytest.mark.parametrize("elements_a_row", [1, 13])
def test_each_element_has_its_own_sixteen_bits(elements_a_row, seed, step, first_row):
    x = draw((2, 145), "float32", 12)
    key = key_of(seed, step, first_row)
    packed = pack(x, "stochastic", key=key, elements_a_row=elements_a_row)
    groups = 2 * 2
    scales, codes = packed[:4 * groups].view("float32"), packed[4 * groups:].view("int8").reshape(x.shape)
    half = words_of(first_row * elements_a_row + np.arange(x.size, dtype=object), key, SITE).reshape(x.shape)
    for row in range(2):
        for g, cut in enumerate((slice(0, 128), slice(128, None))):
            largest = np.abs(x[row, cut]).max()
            assert scales[2 * row + g] == np.float32(largest) / np.float32(127)
            moved = x[row, cut].astype("float64") * (np.float32(127) / largest) + (half[row, cut] + 0.5) / 65536
            assert (codes[row, cut] == np.clip(np.floor(moved.astype("float32")), -127, 127)).all()


def test_the_mean_of_what_is_rounded_at_random_is_the_value():
    """65 536 roundings of each of 128 values that lie anywhere between two codes, under one seed: the mean is the value
    within five standard errors, for each, and for all together; to nearest it is not."""
    x = np.concatenate([[127.0], np.linspace(-3, 3, 127)]).astype("float32")
    repeats = 65536
    many = np.tile(x, (repeats, 1))
    codes = int8_round_trip(many, "stochastic", elements_a_row=GROUP)[1].astype("float64")
    share = x - np.floor(x)
    deviation = np.sqrt(np.maximum(share * (1 - share), 1e-12) / repeats)
    error = codes.mean(axis=0) - x
    assert (np.abs(error) <= 5 * deviation + 2.0**-17).all()
    assert abs(error.sum()) <= 5 * np.sqrt((deviation**2).sum()) + 128 * 2.0**-17
    assert set(np.unique(np.abs(codes - x) < 1)) == {True}
    nearest = int8_round_trip(x)[1] - x
    assert (np.abs(nearest) > 5 * deviation + 2.0**-17).sum() > 100, "the bound is one that rounding to nearest fails"


def test_roundings_of_neighbours_do_not_go_together():
    """Errors of two elements of one value, over 65 536 rows: correlation within five standard errors of none."""
    x = np.tile(np.array([127.0, 0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5], "float32"), (65536, 1))
    error = int8_round_trip(x, "stochastic", elements_a_row=10)[1][:, 1:].astype("float64") - x[:, 1:]
    correlation = np.corrcoef(error.T)
    assert np.abs(correlation - np.eye(9)).max() < 5 / 256
    across = (error[1:] * error[:-1]).mean(axis=0) / error.var(axis=0)
    assert np.abs(across).max() < 5 / 256


def test_whole_codes_stay_and_seed_step_row_and_site_each_change_the_rest():
    x = np.arange(-127, 1, dtype="float32")
    assert (int8_round_trip(x, "stochastic")[1] == x).all(), "scale 1: whole numbers are codes, the largest among them"
    x = draw(GROUP, "float32", 13)
    packed = [pack(x, "stochastic", key=key_of(*key), site=site).tobytes()
              for key, site in (((7, 3, 0), 5), ((8, 3, 0), 5), ((7, 4, 0), 5), ((7, 3, 1), 5), ((7, 3, 0), 6))]
    assert len(set(packed)) == 5


def test_a_wrong_key_is_refused():
    with pytest.raises(ShapeError, match="key"):
        pack(draw(5, "float32"), "stochastic", key=np.zeros(2, "uint64"))


def test_wrong_lengths_are_refused_before_anything_is_written():
    x = draw(300, "float32", 11)
    for call in (lambda: _kernels.compress_bfloat16(x, y=np.zeros(299, "uint16")),
                 lambda: _kernels.compress_bfloat16(x, y=np.zeros(301, "uint16")),
                 lambda: _kernels.expand_bfloat16(np.zeros(299, "uint16"), y=x),
                 lambda: _kernels.compress_int8(rows_of(x), y=np.zeros(_kernels.int8_bytes(1, 300) - 1, "uint8")),
                 lambda: _kernels.compress_int8_stochastic(rows_of(x), key_of(), SITE, 1,
                                                           y=np.zeros(_kernels.int8_bytes(1, 300) - 1, "uint8")),
                 lambda: _kernels.expand_int8(np.zeros(_kernels.int8_bytes(1, 300) - 1, "uint8"), y=rows_of(x))):
        before = x.copy()
        with pytest.raises(ShapeError):
            call()
        lawtools.assert_same_bits(x, before)
    for call in (lambda: _kernels.compress_bfloat16(None, y=np.zeros(0, "uint16")),
                 lambda: _kernels.compress_int8(rows_of(x), y=None), lambda: _kernels.expand_int8(None, y=rows_of(x)),
                 lambda: _kernels.compress_int8_stochastic(rows_of(x), None, SITE, 1, y=np.zeros(999, "uint8"))):
        with pytest.raises(TypeError):
            call()
