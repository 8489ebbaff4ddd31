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
