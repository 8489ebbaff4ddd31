"""Views of the laboratory and of the exact reference."""

from collections.abc import Callable
from statistics import median

from words import Table, code, megabytes, number, spread

PROVED = 1e-4  # gap of a solution that its bound leaves no room to better: the solver's own tolerance


def _optimum(data: dict) -> Table:
    """A row for each program: how far ours is from the best at equal limits, and in bytes at equal seconds."""
    rows = []
    for row in data["rows"]:
        points = row["points"]
        slower = [p["ours_seconds"] / p["best_seconds"] - 1 for p in points]
        larger = [p["ours_live_bytes_at_its_seconds"] / p["best_live_bytes"] - 1 for p in points
                  if p["ours_live_bytes_at_its_seconds"]]
        gaps = [p["gap"] for p in points]
        rows.append((row["program"], str(row["steps"]), f"{sum(g <= PROVED for g in gaps)} of {len(points)}",
                     f"{max(gaps):.2%}", f"{median(slower):.2%}", f"{max(slower):.2%}",
                     f"{sum(s <= 0.02 for s in slower)} of {len(slower)}", f"{median(larger):.2%}", f"{max(larger):.2%}"))
    return ("program", "steps", "limits proved", "gap, most", "slower, median", "slower, most", "within 2 %", "larger, median",
            "larger, most"), rows


def _points(data: dict) -> Table:
    """A row for each limit of each program."""
    header = ("program, limit MB", "ours s", "best s", "ours over best", "gap", "ours needs for the best's seconds, MB")
    return header, [(f"{row['program']}, {megabytes(p['limit'])}", f"{p['ours_seconds']:.4f}", f"{p['best_seconds']:.4f}",
                     f"{p['ours_seconds'] / p['best_seconds']:.4f}", f"{p['gap']:.2%}",
                     megabytes(p["ours_live_bytes_at_its_seconds"])) for row in data["rows"] for p in row["points"]]


def _measured(data: dict) -> Table:
    """A row for each contestant that ran, from least bytes to most."""
    rows = sorted((row for row in data["rows"] if row["step_seconds"] and not row["same_as"]),
                  key=lambda row: (row["total_bytes"], row["step_seconds"]["median"]))
    return ("strategy", "total MB", "step s (least to most)", "predicted s"), [
        (code(row["strategy"]), megabytes(row["total_bytes"]), spread(row["step_seconds"]),
         number(row["predicted_step_seconds"], ".3f")) for row in rows]


def _regret(data: dict) -> Table:
    """A row for each limit: our plan's time over that of the best other strategy within the same bytes."""
    return ("limit MB", "ours over the best (least to most)", "the best, of each half"), [
        (megabytes(one["limit"]), f"{one['ratio']:.3f} ({one['low']:.3f} to {one['high']:.3f})",
         ", ".join(map(code, dict.fromkeys(one["best"])))) for one in data["regret"]]


def _foretold(data: dict) -> Table:
    told = data["foretold"]
    return ("predicted against measured seconds", ""), [
        ("points", str(told["points"])), ("median distance", number(told["median"], ".1%")),
        ("measured over predicted, median", number(told["pace"], ".2f")),
        ("median distance but for that", number(told["median_at_pace"], ".1%")),
        ("points known to within 2 %", str(told["narrow_points"])), ("most of these", number(told["narrow_most"], ".1%"))]


def _changes(data: dict) -> Table:
    """A row for each size: how far predicted seconds are from the median of measured ones (from the most to the least)."""
    def told(row: dict) -> str:
        low, high = (row["predicted_seconds"] / row["seconds"][name] - 1 for name in ("max", "min"))
        return f"{row['error']:+.1%} ({100 * low:+.0f} to {100 * high:+.0f})"

    rows = []
    for change in dict.fromkeys(row["change"] for row in data["rows"]):
        mine = [row for row in data["rows"] if row["change"] == change]
        rows.append(("as calibrated" if change == "none" else change,
                     *map(told, mine), f"{max(abs(row['error']) for row in mine):.1%}"))
    names = [row["name"] for row in data["rows"] if row["change"] == data["rows"][0]["change"]]
    return ("change", *map(code, names), "most"), rows


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("optimum", ""): _optimum,
    ("optimum", "points"): _points,
    ("changes", ""): _changes,
    ("cllm lab", ""): _measured,
    ("cllm lab", "regret"): _regret,
    ("cllm lab", "foretold"): _foretold,
}
