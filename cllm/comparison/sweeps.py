"""What a sweep shows: step time and arena of each strategy from point to point, as lines and as a picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cllm.comparison.experiment import COUNTED, counted_in, setting_name
from cllm.comparison.picture import MEGABYTES, WIDTH, check_picture

# Colour-blind safe (Okabe and Ito), told apart by mark as well.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure of a row that is followed through a sweep, measured and predicted, in units of `scale`."""

    title: str
    unit: str
    scale: float
    measured: Callable[[dict], float | None]
    predicted: Callable[[dict], float | None]


QUANTITIES = (
    Quantity("Time of one step", "seconds", 1.0, lambda row: row["step_seconds"] and row["step_seconds"]["median"],
             lambda row: row["predicted_step_seconds"]),
    Quantity("Activation arena", MEGABYTES, 1e6, lambda row: row["high_water_bytes"], lambda row: row["arena_bytes"]),
)


SPEEDUP = Quantity("Speed-up", "times as fast as on the first number", 1.0, lambda row: row.get("speedup"),
                   lambda row: None)


def quantities_of(points: list[dict]) -> tuple[Quantity, ...]:
    """What is followed through a sweep: where threads or processes are swept, the speed-up, too."""
    return QUANTITIES if counted_in(points[0]["setting"]) is None else (*QUANTITIES, SPEEDUP)


@dataclass(frozen=True, slots=True)
class Line:
    """A strategy's values from point to point; None where it failed or was not reached."""

    strategy: str
    measured: tuple[float | None, ...]
    predicted: tuple[float | None, ...]


def lines_of(points: list[dict], quantity: Quantity) -> list[Line]:
    """A line for each strategy of any point, in the order in which they first stand there."""
    names = dict.fromkeys(row["strategy"] for point in points for row in point["rows"])
    lines = []
    for name in names:
        rows = [next((row for row in point["rows"] if row["strategy"] == name), None) for point in points]
        lines.append(Line(name, *(tuple(_scaled(row and value(row), quantity.scale) for row in rows)
                                  for value in (quantity.measured, quantity.predicted))))
    return lines


def places_of(points: list[dict]) -> tuple[list[float], list[str], str]:
    """Where points stand on the x axis, their labels, and the axis's name.

    One swept key with numbers gives its values, anything else 0, 1, 2, ... with all values of a point as its label.
    """
    settings = [point["setting"] for point in points]
    keys = list(settings[0])
    if len(keys) == 1:
        values = [setting[keys[0]] for setting in settings]
        if all(type(value) in (int, float) for value in values):
            return values, [f"{value:g}" for value in values], keys[0]
        return list(range(len(points))), [setting_name({"": value})[1:] for value in values], keys[0]
    labels = [", ".join(setting_name({"": value})[1:] for value in setting.values()) for setting in settings]
    return list(range(len(points))), labels, ", ".join(keys)


def draw_sweep(points: list[dict], path: Path, caption: str = "") -> None:
    """Draw the lines of a sweep as PNG or SVG, by the ending of `path`: measured solid, predicted dashed."""
    check_picture(path)
    from matplotlib.figure import Figure  # no pyplot: no display, no state

    places, labels, name = places_of(points)
    quantities = quantities_of(points)
    figure = Figure(figsize=(WIDTH, 0.6 + 4 * len(quantities)), layout="constrained")
    figure.suptitle(caption, fontsize=10)
    for axis, quantity in zip(figure.subplots(len(quantities), 1), quantities, strict=True):
        for number, line in enumerate(lines_of(points, quantity)):
            colour, mark = STYLES[number % len(STYLES)]
            for values, dash, label in ((line.predicted, "--", None), (line.measured, "-", line.strategy)):
                axis.plot(places, [float("nan") if v is None else v for v in values], linestyle=dash, marker=mark,
                          color=colour, markerfacecolor=colour if label else "none", label=label)
        if quantity is SPEEDUP and name in COUNTED:
            axis.plot(places, [place / places[0] for place in places], color="#999999", linewidth=1, label="ideal")
        axis.set_title(quantity.title, fontsize=11)
        axis.set_ylabel(quantity.unit)
        axis.set_xlabel(name)
        axis.set_xticks(places, labels, rotation=30 if max(map(len, labels)) > 12 else 0)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, title="solid: measured; dashed: predicted", title_fontsize=8)
    figure.savefig(path, dpi=130)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale
