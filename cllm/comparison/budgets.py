"""Budgets from least to most: the strategies that ``cllm compare --pareto`` adds, and the planner's whole curve."""

from collections.abc import Iterable
from math import floor

from cllm.comparison.job import Job
from cllm.errors import CllmError
from cllm.planner.ledger import Ledger
from cllm.planning import decide, ledger_of, pareto
from cllm.schedule.operations import Schedule

STEP = 10_000  # bytes: names of budgets are in hundredths of an MB


def planned_curve(job: Job) -> list[dict]:
    """The planner's curve for the job, least memory first: total and arena bytes, and predicted seconds of a step."""
    plans = pareto(job.architecture, job.batch_size, job.seq_len, dtype=job.dtype, num_threads=job.threads, compute=job.compute)
    return [{"total_bytes": p.total_bytes, "arena_bytes": p.arena_bytes, "predicted_step_seconds": p.predicted_seconds}
            for p in plans]


def budget_strategies(job: Job, curve: list[dict], count: int, others: Iterable[object] = ()) -> tuple[str, ...]:
    """Names of `count` budgets, evenly spaced over the curve, from its least to its most.

    Fewer where a budget would run the same operations as another, or as one of the strategies `others`: nothing is
    measured twice.
    """
    least, most = (choose(point["total_bytes"] for point in curve) for choose in (min, max))
    limits = [least + (most - least) * number // max(1, count - 1) for number in range(count)]
    # The next hundredth above, so that the least limit is one that can be kept.
    names = dict.fromkeys(f"budget:{(floor(limit / STEP) + 1) / 100:.2f}MB" for limit in limits)
    ledger = ledger_of(job.architecture, job.batch_size, job.seq_len, dtype=job.dtype, num_threads=job.threads,
                       compute=job.compute)
    known = [_schedule(ledger, name) for name in others]
    chosen = []
    for name in names:
        made = _schedule(ledger, name)
        if made not in known:
            known.append(made)
            chosen.append(name)
    return tuple(chosen)


def _schedule(ledger: Ledger, strategy) -> Schedule | None:
    """What a strategy runs; None where it is refused, which its own row of the report then says."""
    try:
        return ledger.build(decide(strategy, ledger))[0]
    except CllmError:
        return None
