"""First fit: offsets are those of a plain search in NumPy, whatever the order, the holes and the pieces of time."""
import numpy as np
import pytest

from cllm import _kernels
from cllm.errors import ShapeError


def plain(order, first, last, nbytes, hung, bound):
    """Each buffer in the lowest gap, or the highest below the bound, between those placed that are alive with it."""
    offsets, placed, total = np.zeros(len(order), np.int64), [], 0
    for i in order:
        near = sorted((offsets[j], offsets[j] + nbytes[j]) for j in placed if first[j] <= last[i] and last[j] >= first[i])
        low, gaps = 0, []
        for start, end in near:
            gaps.append((low, start))
            low = max(low, end)
        gaps = [(a, b) for a, b in (*gaps, (low, bound)) if b - a >= nbytes[i]]
        offsets[i] = low if not gaps else gaps[-1][1] - nbytes[i] if hung[i] else gaps[0][0]
        placed.append(i)
        total = max(total, offsets[i] + nbytes[i])
    return total, offsets


def arguments(order, first, last, nbytes, hung, width):
    """What the kernel takes, with rows of the lengths that are needed and workspaces full of rubbish."""
    n, pieces = len(first), int(last.max(initial=0)) // width + 1
    begun = np.bincount(first // width, minlength=pieces)
    reached = np.array([((first // width < p) & (last // width >= p)).sum() for p in range(pieces)])
    rows = np.concatenate((begun, reached))
    starts = np.cumsum(rows) - rows
    read = dict(order=order, first=first, last=last, nbytes=nbytes, hung=hung, width=width, begins=starts[:pieces],
                reaches=starts[pieces:])
    return read, dict(rows=np.full(rows.sum(), -1), filled=np.full(2 * pieces, 99), near=np.full((2, n), -1),
                      offsets=np.full(n, -7))


def draw(rng, n, ops):
    first = rng.integers(0, ops, n)
    last = np.minimum(ops - 1, first + rng.integers(0, max(1, int(ops * rng.choice([0.05, 0.3, 1.0]))), n))
    return rng.permutation(n), first, last, rng.integers(0, 20, n) * 64, (rng.random(n) < 0.3).astype(np.uint8)


@pytest.mark.parametrize("seed", range(60))
def test_offsets_are_those_of_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    drawn = draw(rng, int(rng.integers(0, 90)), int(rng.integers(1, 200)))
    for bound in (0, 640, 6400):
        total, offsets = plain(*drawn, bound)
        for width in (1, 7, 64, 1000):
            read, written = arguments(*drawn, width)
            assert _kernels.first_fit(bound=bound, **read, **written) == total
            np.testing.assert_array_equal(written["offsets"], offsets)


def test_a_hole_is_filled_from_below_and_a_hung_buffer_goes_to_the_top():
    first, last, nbytes = np.zeros(4, int), np.ones(4, int), np.array([64, 128, 64, 64])
    last[1] = 0
    first[3] = 1  # alive when the second is gone
    for hung, must in ((0, 64), (1, 256)):
        read, written = arguments(np.arange(4), first, last, nbytes, np.array([0, 0, 0, hung], np.uint8), 64)
        assert _kernels.first_fit(bound=320, **read, **written) == (256 if not hung else 320)
        assert written["offsets"].tolist() == [0, 64, 192, must]


@pytest.mark.parametrize("name", ["first", "last", "nbytes", "hung", "reaches", "rows", "filled", "near", "offsets"])
def test_lengths_that_do_not_belong_together_are_refused(name):
    drawn = draw(np.random.default_rng(0), 9, 30)
    read, written = arguments(*drawn, 64)
    for mine in (read, written):
        if name in mine:
            mine[name] = np.ascontiguousarray(mine[name][..., :-1])
    with pytest.raises(ShapeError, match=f"first_fit.*{name}"):
        _kernels.first_fit(bound=640, **read, **written)
