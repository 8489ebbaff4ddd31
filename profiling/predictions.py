"""Predicted against measured seconds of a step, for every strategy; and whether budgets buy what the planner says.

    python profiling/predictions.py
    python profiling/predictions.py --batch-size 4 --seq-len 1024 --rounds 5
    python profiling/predictions.py --budgets 8
    python profiling/predictions.py --preset tiny --rounds 3 --budgets 4

First this machine is calibrated for the workload, in a process like those that are measured, into a folder of its own
(what users have stored is neither read nor changed). Then every strategy, in a process of its own, takes bursts of whole
steps in turn, and the medians stand beside `plan.predicted_seconds`.

With --budgets N the planner's curve is measured as well: N of its plans from least memory to most, spread over the
bytes. Two things must hold. Time falls with memory and never rises beyond noise: no ratio of neighbours lies above 1 with
its whole interval, and that with 95 % for all of them together (Bonferroni: of seven ratios of equals, each held to 95 %,
one in six runs would call one a rise). And no budget's plan is more than 3 % slower than the best of the named strategies
that give the same bits and need no larger arena.
"""

import sys
from statistics import median

import draw
import harness
from jobs import models, options, record

STRATEGIES = "cache,recompute,every:2,selective,sqrt,binomial:2,per-block,cache@2,cache@1,selective@2,recompute@2,bf16,int8"
WITHIN = 0.03
DOUBT = 0.05  # that the verdict on all steps together may call one a rise that is none
CURVE_POINTS = 40


def main() -> int:
    """Calibrate, measure, print, write; the exit code is 1 when a strategy failed."""
    parser = options.parser(__doc__.splitlines()[0], STRATEGIES, rounds=7)
    parser.add_argument("--budgets", type=int, default=0, metavar="N", help="measure so many plans of the planner too")
    arguments = options.parsed(parser)
    model = models.asked(arguments)
    with options.calibrated(arguments, model) as spent:
        curve = _curve(arguments, model) if arguments.budgets else []
        budgets = {f"budget:{point['total_bytes']}B": point for point in spread(curve, arguments.budgets)}
        names = [*options.strategies_of(arguments), *budgets]
        with options.trainings(arguments, model, names) as (made, failed):
            bursts = {name: options.bursts(peer) for name, (peer, _) in made.items()}
            timings = harness.interleave(bursts, arguments.rounds, harness.say)
            facts = {name: one for name, (_, one) in made.items()}
    harness.say("")
    rows = [_row(name, timing, facts[name], name in budgets) for name, timing in timings.items()]
    problems = [f"{name} failed: {reason}" for name, reason in failed.items()]
    data = {**options.job_of(arguments, model), "calibration_seconds": spent, "rows": rows, "curve": curve,
            "median_error": median(abs(row["error"]) for row in rows) if rows else None,
            "budgets": judged(rows, timings), "problems": problems}
    _print(arguments, model, data)
    path = record.write_result("predictions", arguments.threads, data, arguments.out)
    pictures = draw.draw(path)
    print(draw.told(path, pictures))
    return 1 if problems else 0


def _curve(arguments, model: dict) -> list[dict]:
    """The planner's curve as it predicts it, from least memory to most."""
    from cllm.planning import pareto

    plans = pareto(models.architecture(model), arguments.batch_size, arguments.seq_len, num_threads=arguments.threads,
                   most=CURVE_POINTS)
    return [{"arena_bytes": plan.arena_bytes, "total_bytes": plan.total_bytes, "seconds": plan.predicted_seconds}
            for plan in plans]


def spread(curve: list[dict], count: int) -> list[dict]:
    """`count` points of the curve, both ends among them, as far apart in bytes as it has them: the next one is always that
    whose nearest chosen neighbour is farthest."""
    chosen = {0, len(curve) - 1} if count > 1 else {0} if count else set()
    while curve and len(chosen) < min(count, len(curve)):
        chosen.add(max(set(range(len(curve))) - chosen, key=lambda i: min(
            abs(curve[i]["total_bytes"] - curve[other]["total_bytes"]) for other in chosen)))
    return [curve[i] for i in sorted(chosen) if curve]


def _row(name: str, timing: harness.Timing, facts: dict, is_budget: bool) -> dict:
    predicted = facts["predicted_seconds"]
    return {"name": name, "is_budget": is_budget, "seconds": timing.to_dict(), "predicted_seconds": predicted,
            "error": predicted / timing.median - 1, "exact": facts["exact"], "arena_bytes": facts["arena_bytes"],
            "total_bytes": facts["total_bytes"]}


def judged(rows: list[dict], timings: dict[str, harness.Timing]) -> dict | None:
    """Both verdicts on the budgets, each comparison with its figures; None where no two were measured.

    Returns
    -------
    dict
        ``steps``: each budget against the next smaller one, time over time with its interval, and whether it rose.
        ``against_best``: each budget against the fastest exact named strategy that needs no larger arena. ``falls`` and
        ``within``: the verdicts.
    """
    budgets = sorted((row for row in rows if row["is_budget"]), key=lambda row: row["total_bytes"])
    if len(budgets) < 2:
        return None
    steps, against = [], []
    for smaller, larger in zip(budgets[:-1], budgets[1:], strict=True):
        pairs = harness.paired(timings[larger["name"]], timings[smaller["name"]])
        value, low, high = harness.median_interval(pairs, 1 - DOUBT / (len(budgets) - 1))
        steps.append({"from": smaller["name"], "to": larger["name"], "ratio": value, "low": low, "high": high,
                      "rises": low > 1})
    for budget in budgets:
        rivals = [row for row in rows if not row["is_budget"] and row["exact"] and row["arena_bytes"] <= budget["arena_bytes"]]
        if rivals:
            best = min(rivals, key=lambda row: row["seconds"]["median"])
            value, low, high = harness.median_interval(harness.paired(timings[budget["name"]], timings[best["name"]]))
            against.append({"budget": budget["name"], "best": best["name"], "ratio": value, "low": low, "high": high,
                            "within": value <= 1 + WITHIN})
    return {"steps": steps, "against_best": against, "falls": not any(one["rises"] for one in steps),
            "within": all(one["within"] for one in against)}


def _print(arguments, model: dict, data: dict) -> None:
    print(f"{options.title(arguments, model)}; calibrated in {data['calibration_seconds']:.0f} s")
    print(f"{'':22s} {'predicted':>9s} {'measured':>9s} {'least':>9s} {'most':>9s} {'error':>7s} {'arena MB':>9s} "
          f"{'total MB':>9s}")
    for row in data["rows"]:
        seconds = row["seconds"]
        print(f"{row['name']:22s} {row['predicted_seconds']:9.4f} {seconds['median']:9.4f} {seconds['min']:9.4f} "
              f"{seconds['max']:9.4f} {row['error']:+7.1%} {row['arena_bytes'] / 1e6:9.1f} {row['total_bytes'] / 1e6:9.1f}")
    if data["rows"]:
        print(f"median of the distances: {data['median_error']:.1%}")
    if data["budgets"]:
        _print_budgets(data["budgets"])
    for problem in data["problems"]:
        print(problem)


def _print_budgets(budgets: dict) -> None:
    for one in budgets["steps"]:
        print(f"{one['to']} over {one['from']}: {one['ratio']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
              f"{': RISES' if one['rises'] else ''}")
    for one in budgets["against_best"]:
        print(f"{one['budget']} over {one['best']}, the best within its arena: {one['ratio']:.3f} ({one['low']:.3f} to "
              f"{one['high']:.3f}){'' if one['within'] else ': MORE THAN 3 % SLOWER'}")
    print(f"time never rises beyond noise: {'yes' if budgets['falls'] else 'NO'}; within 3 % of the best named strategy: "
          f"{'yes' if budgets['within'] else 'NO'}")


if __name__ == "__main__":
    sys.exit(options.run(main))
