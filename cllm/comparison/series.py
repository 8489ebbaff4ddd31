"""What a picture of memory against time shows: sets of points, the same for the page and for ``--plot``.

Memory is that of the whole training: predicted, `total_bytes`; measured, what the process's peak lies above what it
had before the model was made; of PyTorch, the same.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """Bytes, seconds of a step, and a name, which may be empty."""

    nbytes: float
    seconds: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one source: ``kind`` is curve, predicted, measured or peers; a curve is a line through its points."""

    title: str
    kind: str
    points: tuple[Point, ...]


def growth_bytes(row: dict) -> int | None:
    """Measured memory of a row: the process's peak over what it had before model and executor were made."""
    if row["rss_peak_bytes"] is None or row["rss_start_bytes"] is None:
        return None
    return row["rss_peak_bytes"] - row["rss_start_bytes"]


def memory_against_time(report: dict) -> list[Series]:
    """The series of a report (of one point, where something was swept); those without points are left out."""
    curve = [Point(p["total_bytes"], p["predicted_step_seconds"]) for p in report["curve"] or []]
    rows = [row for row in report["rows"] if row["step_seconds"]]
    predicted = [Point(row["total_bytes"], row["predicted_step_seconds"], row["strategy"]) for row in rows]
    measured = [Point(growth_bytes(row), row["step_seconds"]["median"], row["strategy"]) for row in rows
                if growth_bytes(row) is not None]
    made = [Series("the planner's curve, predicted", "curve", tuple(curve)),
            Series("strategies, predicted", "predicted", tuple(predicted)),
            Series("strategies, measured", "measured", tuple(measured))]
    for peers in report["peers"]:
        points = tuple(Point(p["memory_bytes"], p["step_seconds"], p["name"]) for p in peers["points"])
        made.append(Series(f"PyTorch, measured {peers['date']} on {peers['cpu']}", "peers", points))
    return [series for series in made if series.points]
