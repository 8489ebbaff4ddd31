"""How many steps fit into some hours, as a few that change nothing tell."""

from statistics import median
from time import perf_counter

from cllm.checks import LARGEST
from cllm.models.model import Model
from cllm.planner.costs import Speeds

TIMED_SECONDS = 5.0  # of calls, after one that warms up; two calls at least
FEWEST = 2


def steps_in(model: Model, beginning) -> int:
    """Steps that take the settings' hours with the evaluations between them, at the pace of the first calls.

    Loss and gradients of the first step are taken and thrown away: weights, optimizer and order stay as they are. What
    the optimizer takes is predicted.
    """
    s = beginning.settings
    source, executor = beginning.source, beginning.executors.of(*beginning.source.sizes)
    call_once = executor.measure if executor.plan.update_in_backward else executor.loss_and_grad
    timed = _seconds_of(lambda: [call_once(**call) for call in source.calls(0)])
    executor.step = 0
    model.zero_grad()
    work = executor.workload
    step = timed + Speeds.stored(work).update_seconds(model.program, work)
    if source.can_evaluate:
        call = source.calls(0)[0]
        step += _seconds_of(lambda: executor.loss(**call)) * source.evaluation_calls(s.eval_batches) / s.eval_every
    return max(1, min(LARGEST, int(s.hours * 3600 / step)))


def _seconds_of(call) -> float:
    """Seconds of a call, the median of some."""
    call()
    spent: list[float] = []
    while len(spent) < FEWEST or sum(spent) < TIMED_SECONDS and len(spent) < 50:
        began = perf_counter()
        call()
        spent.append(perf_counter() - began)
    return median(spent)


def smoothed(before: float, now: float) -> float:
    """A mean that forgets, of what was before and what is now; 0 is nothing before."""
    return now if not before else 0.9 * before + 0.1 * now


class Paces:
    """Seconds of several processes' own work, and which of them all others wait for."""

    def __init__(self):
        self._means: list[float] = []

    def seen(self, seconds: list[float]) -> dict:
        """What a record of a step has of it: the process that takes longest, and how many times the median of all."""
        self._means = [smoothed(*pair) for pair in zip(self._means or [0.0] * len(seconds), seconds, strict=True)]
        longest = max(self._means)
        return {"slowest_process": self._means.index(longest), "slowest_over_median": longest / median(self._means)}
