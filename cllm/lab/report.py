"""What the laboratory found, as plain data: a row for each contestant, the planner's regret, how well seconds were foretold."""

from collections.abc import Sequence
from statistics import median

from cllm.comparison.job import Job
from cllm.comparison.runner import Run
from cllm.lab.contestants import Contestant
from cllm.lab.running import OURS

NARROW = 0.02  # half of an interval over its middle: points that are known this well are to be foretold


def rows_of(contestants: Sequence[Contestant], runs: Sequence[Run]) -> list[dict]:
    """A row for each contestant, in order; one that runs what another runs has the other's figures."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.strategy, []).append(run)
    return [_row(c, by_name.get(c.same_as or c.name, [])) for c in contestants]


def _row(contestant: Contestant, runs: list[Run]) -> dict:
    results = {run.round: run.result for run in runs if run.result is not None}
    error = contestant.refused or next((run.error for run in runs if run.error), None)
    row = {"strategy": contestant.name, "kind": contestant.kind, "limit": contestant.limit, "same_as": contestant.same_as,
           "error": error, "rounds": len(results), "step_seconds": None, "seconds_by_round": {}, "predicted_step_seconds": None,
           "arena_bytes": None, "high_water_bytes": None, "total_bytes": None, "rss_peak_bytes": None, "rss_start_bytes": None,
           "exact": None, "losses": [], "grad_sha256": None}
    if not results:
        return row
    first = results[min(results)]
    highest = max(results.values(), key=lambda result: result["rss_peak_bytes"] or 0)
    row |= {name: first[name] for name in ("exact", "predicted_step_seconds", "arena_bytes", "high_water_bytes", "total_bytes",
                                           "losses", "grad_sha256")}
    row |= {name: highest[name] for name in ("rss_peak_bytes", "rss_start_bytes")}
    by_round = {number: median(result["step_seconds"]) for number, result in sorted(results.items())}
    seconds = list(by_round.values())
    row["seconds_by_round"] = {str(number): value for number, value in by_round.items()}
    row["step_seconds"] = {"min": min(seconds), "median": median(seconds), "max": max(seconds)}
    return row


def regret_of(rows: Sequence[dict], limits: Sequence[int]) -> list[dict]:
    """For each limit, seconds of our plan over those of the best measured strategy of any kind within the same bytes.

    The best is chosen by the rounds of one half and timed in those of the other, then the other way round: a minimum over
    noisy runs flatters itself. Ratios are of the same round. Where all others were left out of later rounds, as far slower, it
    is the quickest of them in the rounds that it ran.

    Returns
    -------
    list of dict
        ``limit``, ``best`` (names, of each half), ``ratio`` (the median), ``low`` and ``high`` (least and most of a round),
        ``rounds``; limits that ours did not keep, or without two rounds, are left out.
    """
    measured = [row for row in rows if row["step_seconds"]]
    found = []
    for limit in limits:
        ours = next((row for row in measured if row["kind"] == OURS and row["limit"] == limit), None)
        others = [row for row in measured if row["kind"] != OURS and row["total_bytes"] <= limit]
        if ours is None or not others or len(ours["seconds_by_round"]) < 2:
            continue
        ratios, best = [], []
        for half in (0, 1):
            choosing, timing = ({n for n in ours["seconds_by_round"] if int(n) % 2 == part} for part in (half, 1 - half))
            able = [row for row in others if choosing | timing <= set(row["seconds_by_round"])]
            if not able:
                continue
            winner = min(able, key=lambda row: median(row["seconds_by_round"][n] for n in choosing))
            best.append(winner["strategy"])
            ratios += [ours["seconds_by_round"][n] / winner["seconds_by_round"][n] for n in timing]
        if not ratios:  # others were left out of later rounds: the quickest of them, in those that it ran
            winner = min(others, key=lambda row: row["step_seconds"]["median"])
            best = [winner["strategy"]]
            ratios = [seconds / winner["seconds_by_round"][n] for n, seconds in ours["seconds_by_round"].items()
                      if n in winner["seconds_by_round"]]
        if ratios:
            found.append({"limit": limit, "best": best, "ratio": median(ratios), "low": min(ratios), "high": max(ratios),
                          "rounds": len(ratios)})
    return found


def foretold(rows: Sequence[dict]) -> dict:
    """How far predicted seconds are from measured ones: the median of all, and the most among points that are known well.

    ``pace`` is the median of measured over predicted: what the machine was slower than when it was calibrated. It is common to
    all plans, so their choice does not hang on it; ``median_at_pace`` is the median distance but for it.
    """
    own = [row for row in rows if row["step_seconds"] and not row["same_as"]]
    errors = {row["strategy"]: row["predicted_step_seconds"] / row["step_seconds"]["median"] - 1 for row in own}
    known = [row["strategy"] for row in own if row["rounds"] > 1 and
             row["step_seconds"]["max"] - row["step_seconds"]["min"] <= 2 * NARROW * row["step_seconds"]["median"]]
    pace = median(1 / (1 + error) for error in errors.values()) if errors else None
    return {"points": len(errors), "median": median(map(abs, errors.values())) if errors else None, "narrow_points": len(known),
            "narrow_most": max((abs(errors[name]) for name in known), default=None), "pace": pace,
            "median_at_pace": median(abs(pace * (1 + error) - 1) for error in errors.values()) if errors else None}


def problems_of(rows: Sequence[dict], runs: Sequence[Run]) -> list[str]:
    """Sentences; empty when every run is as it must be: what was refused is none."""
    found = [f"{run.strategy}: {run.error}" for run in runs if run.error]
    exact = {row["grad_sha256"] for row in rows if row["exact"]}
    if len(exact) > 1:
        found.append(f"The gradients of exact strategies differ ({', '.join(sorted(d[:12] for d in exact))}).")
    for row in rows:
        if row["arena_bytes"] != row["high_water_bytes"]:
            found.append(f"{row['strategy']}: the highest byte written, {row['high_water_bytes']}, is not the predicted peak, "
                         f"{row['arena_bytes']}.")
    by_name: dict[str, set] = {}
    for run in runs:
        if run.result:
            by_name.setdefault(run.strategy, set()).add((run.result["grad_sha256"], tuple(run.result["losses"])))
    return found + [f"{name}: two rounds gave different bits." for name, bits in by_name.items() if len(bits) > 1]


def report_of(job: Job, contestants: Sequence[Contestant], runs: Sequence[Run], limits: Sequence[int], around: dict) -> dict:
    """The whole report; `around` is the rest of it: date, machine, the planner's curve, points of other libraries."""
    rows = rows_of(contestants, runs)
    told = job.to_dict()
    return {"script": "cllm lab", **around, "family": told.pop("family"), "config": told.pop("config"),
            "model": job.architecture.describe(), "job": told, "limits": list(limits), "rows": rows,
            "regret": regret_of(rows, limits), "foretold": foretold(rows), "problems": problems_of(rows, runs)}

