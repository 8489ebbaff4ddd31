"""Budgets from least to most: the strategies that ``cllm compare --pareto`` adds, and the planner's whole curve."""

from math import floor

from cllm.comparison.job import Job
from cllm.planning import pareto, plan

STEP = 10_000  # bytes: names of budgets are in hundredths of an MB


def planned_curve(job: Job) -> list[dict]:
    """The planner's curve for the job, least memory first: total and arena bytes, and predicted seconds of a step."""
    plans = pareto(job.architecture, job.batch_size, job.seq_len, dtype=job.dtype, num_threads=job.threads)
    return [{"total_bytes": p.total_bytes, "arena_bytes": p.arena_bytes, "predicted_step_seconds": p.predicted_seconds}
            for p in plans]


def budget_strategies(job: Job, curve: list[dict], count: int) -> tuple[str, ...]:
    """Names of `count` budgets, evenly spaced from the curve's least to what caching everything takes.

    Fewer where two would have the same name.
    """
    least = min(point["total_bytes"] for point in curve)
    most = plan(job.architecture, job.batch_size, job.seq_len, "cache", dtype=job.dtype, num_threads=job.threads).total_bytes
    limits = [least + (most - least) * number // max(1, count - 1) for number in range(count)]
    # The next hundredth above, so that the least limit is one that can be kept.
    return tuple(dict.fromkeys(f"budget:{(floor(limit / STEP) + 1) / 100:.2f}MB" for limit in limits))
