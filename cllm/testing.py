"""Assertions for users' own strategies and layers; each raises AssertionError that says what differs."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from cllm.executor.executor import Executor
from cllm.program.kinds import Kind
from cllm.proof.check_layer import check_layer

__all__ = ["assert_gradients_equal_bits", "assert_peak_bytes", "assert_recompute_counts", "check_layer"]


def assert_peak_bytes(executor: Executor) -> None:
    """The last training step wrote up to the predicted peak, and not beyond.

    Parameters
    ----------
    executor : Executor
        After at least one `loss_and_grad`.
    """
    predicted, found = executor.memory.arena_bytes, executor.high_water_bytes
    if predicted != found:
        raise AssertionError(f"the arena was predicted to need {predicted:,} bytes; the highest byte written is {found:,}")


def assert_recompute_counts(executor: Executor, expected: Mapping[str, int]) -> None:
    """A micro-batch rebuilds each step as often as expected; steps that are not named, never.

    Parameters
    ----------
    executor : Executor
    expected : dict of int by step name
        ``{"blocks.0.ln1": 1}``.
    """
    found = Counter(op.step.name for op in executor.schedule.ops if op.kind == Kind.REBUILD)
    wrong = {name: (expected.get(name, 0), found[name]) for name in {*expected, *found} if expected.get(name, 0) != found[name]}
    if wrong:
        lines = [f"{name}: expected {want}, rebuilt {got}" for name, (want, got) in sorted(wrong.items())]
        raise AssertionError("rebuilds differ:\n" + "\n".join(lines))


def assert_gradients_equal_bits(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    """Two sets of gradients are equal to the last bit; NaN equals NaN of the same bits.

    Parameters
    ----------
    first, second : arrays by name
        ``model.gradients`` of two models, or copies taken between steps.
    """
    if set(first) != set(second):
        raise AssertionError(f"names differ: {sorted(set(first) ^ set(second))}")
    for name in first:
        a, b = np.ascontiguousarray(first[name]), np.ascontiguousarray(second[name])
        if a.shape != b.shape or a.dtype != b.dtype:
            raise AssertionError(f"{name}: {a.shape} {a.dtype} against {b.shape} {b.dtype}")
        bits = f"u{a.dtype.itemsize}"
        differ = a.view(bits) != b.view(bits)
        if differ.any():
            where = tuple(int(i) for i in np.argwhere(differ)[0])
            raise AssertionError(f"{name}: {int(differ.sum())} of {a.size} elements differ, first at {where}: "
                                 f"{a[where]!r} against {b[where]!r}")
