"""Views of what plans promise: predicted against measured seconds, budgets, and the time of planning."""

from collections.abc import Callable
from statistics import median

from words import NOTHING, Table, code, megabytes, spread


def _compared_predictions(data: dict) -> Table:
    rows = [(row["strategy"], row["predicted_step_seconds"], row["step_seconds"]["median"]) for row in data["rows"]
            if row["step_seconds"]]
    return _predictions(rows)


def _contested_predictions(data: dict) -> Table:
    return _predictions([(row["name"], row["predicted_seconds"], row["seconds"]["median"]) for row in data["rows"]
                         if row.get("predicted_seconds")])


def _foretold(data: dict) -> Table:
    return _predictions([(f"plan for {megabytes(row['total_bytes'])} MB" if row["is_budget"] else row["name"],
                          row["predicted_seconds"], row["seconds"]["median"]) for row in data["rows"]])


def _predictions(rows: list[tuple[str, float, float]]) -> Table:
    """Predicted against measured seconds, and the median of how far they are apart."""
    errors = [predicted / measured - 1 for _, predicted, measured in rows]
    made = [(code(name), f"{predicted:.3f}", f"{measured:.3f}", f"{error:+.1%}")
            for (name, predicted, measured), error in zip(rows, errors, strict=True)]
    if errors:
        made.append(("median of the distances", "", "", f"{median(map(abs, errors)):.1%}"))
    return ("strategy", "predicted s", "measured s (median)", "predicted over measured"), made


def _budgets(data: dict) -> Table:
    """A row for each budget, from least to most: time against the next smaller one and against the best named strategy."""
    judged = data["budgets"]
    steps = {one["to"]: one for one in judged["steps"]}
    best = {one["budget"]: one for one in judged["against_best"]}
    header = ("plan for", "arena MB", "predicted s", "step s (least to most)", "time against the budget before",
              "time against the best strategy within its arena")
    return header, [(megabytes(row["total_bytes"]) + " MB", megabytes(row["arena_bytes"]),
                     f"{row['predicted_seconds']:.3f}", spread(row["seconds"]), _interval(steps.get(row["name"])),
                     _interval(best.get(row["name"])) + (f" ({code(best[row['name']]['best'])})" if row["name"] in best
                                                         else ""))
                    for row in sorted(data["rows"], key=lambda row: row["total_bytes"]) if row["is_budget"]]


def _interval(one: dict | None) -> str:
    return NOTHING if one is None else f"{one['ratio']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def _planned(data: dict) -> Table:
    return ("workload", "plan s", "refusal s", "plans on the curve"), [
        (row["job"], f"{row['plan_seconds']:.2f}", f"{row['refusal_seconds']:.2f}", str(row["points"]))
        for row in data["rows"]]


def _thinned(data: dict) -> Table:
    found = data["thinned"]
    return ("seconds of the thinned curve's plan over the whole one's", ""), [
        ("median over the limits", f"{found['median']:.4f}"), ("most at the same limit", f"{found['worst']:.4f}"),
        ("most where the limit is 1 % larger", f"{found['worst_near']:.4f}")]


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("cllm compare", "predictions"): _compared_predictions,
    ("compare", "predictions"): _contested_predictions,
    ("predictions", ""): _foretold,
    ("predictions", "budgets"): _budgets,
    ("planning", ""): _planned,
    ("planning", "thinned"): _thinned,
}
