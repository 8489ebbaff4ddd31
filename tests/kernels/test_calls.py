"""Methods with their arguments, called in turn."""
import ctypes
import gc
import signal
import sys
import weakref

import numpy as np
import pytest

from cllm import _kernels


class Layer:
    def __init__(self):
        self.seen = []

    def forward(self, x, weight, *, y, workspace):
        self.seen.append((x, weight, y, workspace, workspace.copy()))
        y[:] = x * weight

    def check(self):
        self.seen.append("check")


def test_a_bound_call_hands_over_the_very_arguments_it_was_made_with():
    layer, x, weight, y = Layer(), np.arange(3.0), 2.0, np.empty(3)
    scratch = np.full(5, 7, np.float32)
    call = _kernels.BoundCall(layer.forward, [x, weight], {"y": y, "workspace": scratch}, [scratch])
    assert call() is None and call() is None
    for seen in layer.seen:
        assert all(one is given for one, given in zip(seen, (x, weight, y, scratch), strict=False))
    np.testing.assert_array_equal(y, [0, 2, 4])
    _kernels.BoundCall(layer.check, [], {})()
    assert layer.seen[-1] == "check"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_the_last_element_of_scratch_and_no_other_is_zero_when_the_method_begins(dtype):
    layer, scratch = Layer(), np.full((2, 4), 9, dtype)
    _kernels.BoundCall(layer.forward, [np.zeros(1), 1.0], {"y": np.empty(1), "workspace": scratch}, [scratch, scratch[:0]])()
    np.testing.assert_array_equal(layer.seen[0][4].ravel(), [9] * 7 + [0])


def test_a_result_may_go_elsewhere():
    layer, x, y, other = Layer(), np.ones(2), np.zeros(2), np.zeros(2)
    call = _kernels.BoundCall(layer.forward, [x, 3.0], {"y": y, "workspace": np.empty(1)})
    call.writing(y=other)()
    assert (other == 3).all() and (y == 0).all()
    call()
    assert (y == 3).all()
    with pytest.raises(KeyError, match="writes y, workspace, not x"):
        call.writing(x=other)


def test_what_it_was_given_lives_as_long_as_the_call_and_no_longer():
    layer, x = Layer(), np.arange(4.0)
    y, scratch = np.empty(4), np.ones(2)
    watched = [weakref.ref(x), weakref.ref(layer), weakref.ref(scratch)]
    before = sys.getrefcount(y)
    call = _kernels.BoundCall(layer.forward, [x, 1.0], {"y": y, "workspace": scratch}, [scratch])
    call()
    layer.seen.clear()
    del x, layer, scratch
    gc.collect()
    assert all(one() is not None for one in watched)
    call()
    del call
    gc.collect()
    assert all(one() is None for one in watched) and sys.getrefcount(y) == before


def test_scratch_that_cannot_be_written_is_refused():
    scratch = np.ones(2)
    scratch.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        _kernels.BoundCall(Layer().forward, [1, 2], {"y": scratch, "workspace": scratch}, [scratch])


def test_each_is_called_in_order_until_one_raises():
    order = []
    _kernels.call_each([lambda: order.append("a"), _kernels.BoundCall(order.append, ["b"], {}), lambda: order.append("c")])
    assert order == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError):
        _kernels.call_each([_kernels.BoundCall(divmod, [1, 0], {}), lambda: order.append("d")])
    assert order == ["a", "b", "c"]


def test_a_signal_ends_calls_between_which_no_python_runs():
    signalled, after = [], []

    def come(number, frame):
        signalled.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, come)
    try:
        with pytest.raises(KeyboardInterrupt):
            _kernels.call_each([_kernels.BoundCall(getattr(ctypes.CDLL(None), "raise"), [int(signal.SIGUSR1)], {}),
                                _kernels.BoundCall(after.append, [1], {})])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signalled and not after
