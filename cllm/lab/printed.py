"""A report of the laboratory as a table, as CSV, and in sentences."""

import csv
import io
import statistics

from rich.console import Console

from cllm.comparison.picture import caption
from cllm.comparison.series import growth_bytes
from cllm.comparison.tables import megabytes, seconds, table

COLUMNS = ("strategy", "kind", "limit", "total_bytes", "arena_bytes", "rss_growth_bytes", "rounds", "step_seconds_median",
           "step_seconds_min", "step_seconds_max", "predicted_step_seconds", "same_as", "exact", "grad_sha256", "error")


def print_lab(report: dict, out: Console) -> None:
    """The rows, from least bytes to most, then what was refused, the regret, and how well seconds were foretold."""
    shown = table("strategy", "total MB", "arena MB", "measured MB", "step median", "min", "max", "predicted", "runs as",
                  title=caption(report))
    rows = [row for row in report["rows"] if row["step_seconds"]]
    for row in sorted(rows, key=lambda row: (row["total_bytes"], row["step_seconds"]["median"])):
        step = row["step_seconds"]
        shown.add_row(row["strategy"], *map(megabytes, (row["total_bytes"], row["arena_bytes"], growth_bytes(row))),
                      seconds(step["median"]), seconds(step["min"]), seconds(step["max"]),
                      seconds(row["predicted_step_seconds"]), row["same_as"] or "")
    out.print(shown)
    if refused := [row["strategy"] for row in report["rows"] if row["error"]]:
        out.print(f"Refused or failed ({len(refused)}): {', '.join(refused)}")
    for line in sentences(report):
        out.print(line)


def sentences(report: dict) -> list[str]:
    """What was found, in words."""
    lines = []
    if report["regret"]:
        ratios = [one["ratio"] for one in report["regret"]]
        lines.append(f"Regret of the planner over {len(ratios)} limits: {statistics.median(ratios):.3f} in the median, "
                     f"{max(ratios):.3f} at most (its time over that of the best other strategy within the same bytes).")
    told = report["foretold"]
    if told["points"]:
        most = "" if told["narrow_most"] is None else (
            f"; {told['narrow_most']:.1%} at most of the {told['narrow_points']} that are known to within 2 %")
        lines.append(f"Predicted seconds are {told['median']:.1%} from the measured ones in the median{most}; all are "
                     f"{told['pace']:.2f} of the predicted in the median, and {told['median_at_pace']:.1%} from that.")
    return lines


def csv_of(report: dict) -> str:
    """The rows as comma-separated values, with a head."""
    text = io.StringIO()
    out = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    out.writeheader()
    for row in report["rows"]:
        step = row["step_seconds"] or {}
        grown = growth_bytes(row) if step else None
        out.writerow({**{name: row[name] for name in COLUMNS if name in row}, "rss_growth_bytes": grown,
                      **{f"step_seconds_{name}": step.get(name) for name in ("median", "min", "max")}})
    return text.getvalue()
