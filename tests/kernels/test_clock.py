"""Calls in turn, with the seconds of each."""
from time import perf_counter, sleep

import numpy as np
import pytest

from cllm import _kernels
from cllm.errors import ShapeError


def test_calls_run_in_order_and_each_has_its_seconds():
    order, seconds = [], np.full(3, np.nan)
    calls = [lambda: order.append("a"), lambda: (order.append("b"), sleep(0.01)), lambda: order.append("c")]
    began = perf_counter()
    _kernels.call_timed(calls, seconds=seconds)
    took = perf_counter() - began
    assert order == ["a", "b", "c"] and (seconds >= 0).all()
    assert 0.01 <= seconds[1] <= took and seconds.sum() <= took


def test_what_a_call_raises_goes_through_and_no_later_call_runs():
    order, seconds = [], np.full(3, -1.0)
    with pytest.raises(ZeroDivisionError):
        _kernels.call_timed([lambda: order.append("a"), lambda: 1 / 0, lambda: order.append("c")], seconds=seconds)
    assert order == ["a"] and seconds[0] >= 0 and (seconds[1:] == -1).all()


@pytest.mark.parametrize("room", [0, 2, 4])
def test_there_must_be_room_for_each(room):
    with pytest.raises(ShapeError, match="seconds must be 3"):
        _kernels.call_timed([pytest.fail] * 3, seconds=np.empty(room))


def test_no_calls_take_no_time():
    _kernels.call_timed([], seconds=np.empty(0))
