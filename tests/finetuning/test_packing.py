"""Best fit decreasing, batches of the same length, orders of epochs."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.finetuning.packing import alike, best_fit_decreasing, shuffled


def plainly(lengths, room, order):
    """The same by looking at every row."""
    rows, left = [], []
    for example in sorted(order.tolist(), key=lambda e: -lengths[e]):
        fitting = [i for i in range(len(rows)) if left[i] >= lengths[example]]
        if not fitting:
            rows.append([])
            left.append(room)
            fitting = [len(rows) - 1]
        least = min(left[i] for i in fitting)
        rows[(best := max(i for i in fitting if left[i] == least))].append(example)
        left[best] -= lengths[example]
    return rows


@given(st.integers(1, 40).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=60))),
       st.integers(0, 5))
def test_every_example_is_in_one_row_that_has_room_for_it(drawn, seed):
    room, lengths = drawn[0], np.array(drawn[1], int)
    rows = best_fit_decreasing(lengths, room, shuffled(len(lengths), seed, 0))
    assert sorted(e for row in rows for e in row) == list(range(len(lengths)))
    assert all(0 < lengths[row].sum() <= room for row in rows)
    filled = [lengths[row].sum() for row in plainly(lengths, room, shuffled(len(lengths), seed, 0))]
    assert len(rows) == len(filled)


def test_many_short_examples_leave_almost_nothing():
    lengths = np.random.default_rng(0).integers(5, 120, 1000)
    rows = best_fit_decreasing(lengths, 512, np.arange(1000))
    assert lengths.sum() / (512 * len(rows)) > 0.98


def test_batches_hold_examples_of_about_the_same_length():
    lengths = np.array([9, 1, 8, 2, 7])
    assert alike(lengths, 2, np.arange(5)) == [[1, 3], [4, 2], [0]]


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_an_order_is_one_of_all_and_depends_on_seed_and_epoch(count):
    assert sorted(shuffled(count, 3, 0)) == list(range(count))
    assert (shuffled(count, 3, 0) == shuffled(count, 3, 0)).all()
    if count > 1:
        assert (shuffled(count, 3, 0) != shuffled(count, 3, 1)).any() and (shuffled(count, 3, 0) != shuffled(count, 4, 0)).any()
