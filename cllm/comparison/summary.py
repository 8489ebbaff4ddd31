"""From runs to rows: what the table, the JSON file and the picture show."""

from statistics import median

from cllm.comparison.contestants import reference_of
from cllm.comparison.runner import Run, Runs
from cllm.planner.load import is_loaded, load_in_words

# What a plan decides: the same in every round.
DECIDED = ("predicted_step_seconds", "arena_bytes", "high_water_bytes", "total_bytes", "message_bytes", "plan", "timeline")
FACTOR = 2  # between what was predicted and measured: beyond it one of the two is wrong
SPREAD = 3  # of the slowest over the quickest step of a strategy: something else was running


def summarise(runs: Runs, machine: dict) -> dict:
    """The report of a comparison as plain data.

    Returns
    -------
    dict
        ``machine``, ``family``, ``config``, ``model`` (in words), ``job``, ``rows`` (one per strategy, in the order asked, by
        its label; a strategy that failed has its reason in ``error`` and None for what it never measured;
        ``gradient_error`` is None for an exact strategy, and where no exact one ran beside it), ``interrupted``,
        ``problems``, a list of sentences that is empty when all is well, and ``doubts``, another of what speaks against the
        seconds: they fail nothing, but a reader should know. ``tokens_per_second`` counts sequences where there are no time
        steps. Of several processes, bytes are those of each, ``message_bytes`` those that one is sent in a step,
        ``step_seconds`` of the slowest, and ``process_seconds`` the own work of each up to the loss, without waiting.
    """
    rows = [_row(strategy, [run for run in runs.done if run.strategy == strategy], runs)
            for strategy in runs.strategies]
    chosen = reference_of(runs.strategies)
    reference = next((row["step_seconds"]["median"] for row in rows if row["strategy"] == chosen and row["step_seconds"]), None)
    for row in rows:
        if reference and row["step_seconds"]:
            row["slowdown_vs_cache"] = row["step_seconds"]["median"] / reference
    job = runs.job.to_dict()
    return {"machine": machine, "family": job.pop("family"), "config": job.pop("config"),
            "model": runs.job.architecture.describe(), "job": job, "rows": rows, "interrupted": runs.interrupted,
            "problems": _problems(runs, rows), "doubts": _doubts(rows, machine)}


def _row(strategy: str, runs: list[Run], whole: Runs) -> dict:
    results = [run.result for run in runs if run.result is not None]
    row = {
        "strategy": strategy, "exact": None, "rounds": len(results), "error": _error(runs, whole),
        "step_seconds": None, "tokens_per_second": None, "slowdown_vs_cache": None, "predicted_step_seconds": None,
        "arena_bytes": None, "high_water_bytes": None, "total_bytes": None, "rss_peak_bytes": None,
        "rss_start_bytes": None, "losses": [], "grad_sha256": None, "gradient_error": None, "plan": None, "timeline": None,
        "message_bytes": None, "process_seconds": [], "crowded": [],
    }
    if not results:
        return row
    seconds = [one for result in results for one in result["step_seconds"]]
    # The highest peak of all rounds, and the start that belongs to it.
    highest = max(results, key=lambda result: result["rss_peak_bytes"] or 0)
    first = results[0]
    row.update({name: first[name] for name in ("exact", *DECIDED, "losses", "grad_sha256")})
    row["step_seconds"] = {"min": min(seconds), "median": median(seconds), "max": max(seconds)}
    row["tokens_per_second"] = whole.job.workload.rows() / row["step_seconds"]["median"]
    row["rss_peak_bytes"], row["rss_start_bytes"] = highest["rss_peak_bytes"], highest["rss_start_bytes"]
    row["gradient_error"] = whole.gradient_errors.get(strategy)
    row["process_seconds"] = [median(of_one) for of_one in zip(*(result["process_seconds"] for result in results), strict=True)]
    row["crowded"] = first["crowded"]
    return row


def _error(runs: list[Run], whole: Runs) -> str | None:
    errors = [run.error for run in runs if run.error is not None]
    if errors:
        return errors[0]
    return "interrupted before it ran" if not runs and whole.interrupted else None


def _doubts(rows: list[dict], machine: dict) -> list[str]:
    load = (machine.get("load_average") or [None])[0]
    found = [f"The machine had {load_in_words(load)} when the comparison began: its seconds are those of a busy machine."] \
        if is_loaded(load) else []
    found += dict.fromkeys(sentence for row in rows for sentence in row["crowded"])
    for row in rows:
        step, predicted = row["step_seconds"], row["predicted_step_seconds"]
        if step and predicted and not 1 / FACTOR <= step["median"] / predicted <= FACTOR:
            found.append(f"{row['strategy']}: a step took {step['median']:.3g} s where {predicted:.3g} were predicted, more "
                         f"than a factor of {FACTOR} apart.")
        if step and step["max"] > SPREAD * step["min"]:
            found.append(f"{row['strategy']}: its steps took from {step['min']:.3g} to {step['max']:.3g} s.")
    return found


def _problems(runs: Runs, rows: list[dict]) -> list[str]:
    found = [f"{row['strategy']}: {row['error']}" for row in rows if row["error"]]
    if runs.interrupted:
        found.append("Interrupted: what had been measured by then is kept.")
    measured = [run for run in runs.done if run.result is not None]
    for strategy in runs.strategies:
        mine = [run.result for run in measured if run.strategy == strategy]
        if any((one["grad_sha256"], one["losses"]) != (mine[0]["grad_sha256"], mine[0]["losses"]) for one in mine):
            found.append(f"{strategy}: two rounds gave different bits; the same run must always give the same.")
    exact = {run.strategy: run.result["grad_sha256"] for run in measured if run.result["exact"]}
    if len(set(exact.values())) > 1:
        listed = ", ".join(f"{name} {digest[:12]}" for name, digest in exact.items())
        found.append(f"The gradients of exact strategies differ ({listed}); they must be equal to the last bit.")
    for row in rows:
        if row["arena_bytes"] != row["high_water_bytes"]:
            found.append(f"{row['strategy']}: the arena's record, {row['high_water_bytes']} bytes, is not the "
                         f"predicted {row['arena_bytes']}.")
    return found
