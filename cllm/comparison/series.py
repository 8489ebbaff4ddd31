"""What a picture of memory against time shows: sets of points, the same for every kind of picture.

Memory is that of the whole training: predicted, `total_bytes`; measured, what the process's peak lies above what it
had before the model was made; of PyTorch, the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

BUDGET = "budget:"
LINES = ("curve", "front", "peers' front")  # kinds of series that are lines without marks
MEMORY = "memory of the training, MB (10⁶ bytes)"
SECONDS = "seconds of one step"


@dataclass(frozen=True, slots=True)
class Point:
    """Bytes, seconds of a step (the middle, and from `low` to `high` where there are several), and a name."""

    nbytes: float
    seconds: float
    name: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one source.

    `kind` is "strategies", "budgets" (the planner's plans) or "peers" (other libraries), or one of `LINES`: the planner's
    whole curve, what no other point of ours beats in both, and what no other of the peers' does. Points of one name and
    kind that are predicted and `measured` belong together.
    """

    title: str
    kind: str
    points: tuple[Point, ...]
    measured: bool = False


def growth_bytes(row: dict) -> int | None:
    """Measured memory of a row: the process's peak over what it had before model and executor were made."""
    if row["rss_peak_bytes"] is None or row["rss_start_bytes"] is None:
        return None
    return row["rss_peak_bytes"] - row["rss_start_bytes"]


def memory_against_time(report: dict) -> list[Series]:
    """The series of a report (of one point, where something was swept); those without points are left out."""
    rows = [row for row in report["rows"] if row["step_seconds"]]
    predicted = [Point(row["total_bytes"], row["predicted_step_seconds"], row["strategy"]) for row in rows]
    measured = [Point(growth_bytes(row), step["median"], row["strategy"], step["min"], step["max"])
                for row in rows for step in [row["step_seconds"]] if growth_bytes(row) is not None]
    curve = [Point(p["total_bytes"], p["predicted_step_seconds"]) for p in report["curve"] or []]
    peers = [Series(f"PyTorch, measured {one['date']} on {one['cpu']}", "peers",
                    tuple(Point(p["memory_bytes"], p["step_seconds"], p["name"]) for p in one["points"]), measured=True)
             for one in report["peers"]]
    made = [planned_curve(curve), *strategies_and_budgets(predicted, False), *strategies_and_budgets(measured, True), *peers]
    return [series for series in made if series.points]


def planned_curve(points: Iterable[Point]) -> Series:
    """The planner's curve."""
    return Series("the planner's curve, predicted", "curve", tuple(points))


def strategies_and_budgets(points: Sequence[Point], measured: bool) -> list[Series]:
    """Points of cllm's by who decided: named strategies, and the planner for a budget."""
    how = "measured: median, and least to most" if measured else "predicted"
    return [Series(f"{words}, {how}", kind, tuple(p for p in points if p.name.startswith(BUDGET) == (kind == "budgets")),
                   measured) for kind, words in (("strategies", "strategies"), ("budgets", "the planner's plans for budgets"))]


def pairs_of(panel: Sequence[Series]) -> list[tuple[Series, Point, Point]]:
    """What was predicted and what was measured of the same: the series of the one, and both points."""
    found = {(series.kind, point.name): point for series in panel if series.measured for point in series.points}
    return [(series, point, found[series.kind, point.name]) for series in panel if not series.measured
            for point in series.points if point.name and (series.kind, point.name) in found]


def strokes_of(panel: Sequence[Series]) -> list[tuple[Point, Point]]:
    """Both ends of every straight line that is drawn: intervals, from predicted to measured, steps of a curve, a front."""
    made = [(one, other) for _, one, other in pairs_of(panel)]
    for series in panel:
        made += [(replace(p, seconds=p.low), replace(p, seconds=p.high)) for p in series.points if p.low is not None]
        for one, other in pairwise(series.points if series.kind in LINES else ()):
            corner = replace(other, seconds=one.seconds) if series.kind == "curve" else one
            made += [(one, corner), (corner, other)]
    return made


def front_of(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both bytes and seconds, from least bytes to most."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.nbytes, p.seconds)):
        if not best or point.seconds < best[-1].seconds:
            best.append(point)
    return best


def label_of(point: Point) -> str:
    """The name that stands beside a point: of a budget, its limit."""
    return point.name.removeprefix(BUDGET)
