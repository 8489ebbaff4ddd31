"""The picture of a comparison: step time, arena and process peak, below each other, one bar a strategy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cllm.checks import installing
from cllm.errors import DataError
from cllm.models.families import architecture_of

SUFFIXES = (".png", ".svg")

MEGABYTES = "MB (10⁶ bytes)"
WIDTH = 8.0  # inches of every picture: panels stand below each other, so that letters stay legible on a narrow screen


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of bars: what a row shows there, in units of `scale`. The hues are colour-blind safe (Okabe and Ito)."""

    title: str
    unit: str
    colour: str
    value: Callable[[dict], float | None]
    scale: float


TIME = Panel("Time of one step", "seconds: median, and a line from fastest to slowest", "#0072B2",
             lambda row: row["step_seconds"] and row["step_seconds"]["median"], 1.0)
ARENA = Panel("Activation arena", MEGABYTES, "#D55E00", lambda row: row["arena_bytes"], 1e6)
PEAK = Panel("Process peak", f"{MEGABYTES}; pale: before the model was made", "#009E73",
             lambda row: row["rss_peak_bytes"], 1e6)
PANELS = (TIME, ARENA, PEAK)


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before the work that it would show.

    Raises
    ------
    DataError
        When the name's ending is unknown, or matplotlib is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError("--plot", f"must end in {' or '.join(SUFFIXES)}", str(path), "Choose one of these endings.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise DataError("--plot", "needs matplotlib", "no such module",
                        installing("plot")) from None


def draw(report: dict, path: Path) -> None:
    """Draw the rows of `report` (see `summary.summarise`) as PNG or SVG, by the ending of `path`."""
    check_picture(path)
    from matplotlib.figure import Figure  # no pyplot: no display, no state

    rows = report["rows"]
    names = [row["strategy"] for row in rows]
    figure = Figure(figsize=(WIDTH, 0.6 + len(PANELS) * (0.9 + 0.3 * len(rows))), layout="constrained")
    for axes, panel in zip(figure.subplots(len(PANELS), 1), PANELS, strict=True):
        _draw_bars(axes, panel, rows)
        if panel is TIME:
            _draw_spread(axes, rows)
        if panel is PEAK:
            _draw_starts(axes, rows)
        axes.set_yticks(range(len(rows)), names)
        axes.set_xlim(left=0)  # last, since it fixes the other end as well
        axes.invert_yaxis()
    figure.suptitle(caption(report), fontsize=10)
    figure.savefig(path, dpi=150)


def caption(report: dict) -> str:
    """What was trained, and on what, in one line."""
    job, machine = report["job"], report["machine"]
    threads = job["threads"] or machine["cores"]  # older reports did not say, nor what follows
    model = report.get("model") or architecture_of(report).describe()
    time = "" if job["seq_len"] is None else f" × {job['seq_len']}"
    products = f", products in {job['compute']}" if job.get("compute", "float32") != "float32" else ""
    groups, processes = job.get("groups", 1), job.get("processes", 1)
    cut = f" in {groups} groups" if groups > 1 else ""
    apart = f"{processes} processes of " if processes > 1 else ""
    return (f"{model}; batch {job['batch_size']}{time}{cut}, {job['dtype']}{products}, {apart}{threads} "
            f"thread{'s' * (threads > 1)}; {machine['cpu']}")


def caption_of_all(points: list[dict]) -> str:
    """The same of a sweep, whose points differ in what is swept: that of the first, and what it is."""
    swept = ", ".join(points[0]["setting"])
    return f"sweep of {swept}; at its first point:\n{caption(points[0])}" if swept else caption(points[0])


def rate_word(report: dict) -> str:
    """What ``tokens_per_second`` counts."""
    return "sequences/s" if report["job"]["seq_len"] is None else "tokens/s"


def _draw_bars(axes, panel: Panel, rows: list[dict]) -> None:
    for position, row in enumerate(rows):
        value = panel.value(row)
        width = 0.0 if value is None else value / panel.scale
        axes.barh(position, width, color=panel.colour, height=0.62)
        text = _number(width) if value is not None else "failed" if row["error"] else "not measured"
        axes.annotate(text, (width, position), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9,
                      color="#555555" if value is None else "black")
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel(panel.unit, fontsize=9)
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_starts(axes, rows: list[dict]) -> None:
    for position, row in enumerate(rows):
        if row["rss_start_bytes"] and row["rss_peak_bytes"]:
            axes.barh(position, row["rss_start_bytes"] / PEAK.scale, color="white", alpha=0.55, height=0.62)


def _draw_spread(axes, rows: list[dict]) -> None:
    for position, row in enumerate(rows):
        if row["step_seconds"]:
            low, high = row["step_seconds"]["min"], row["step_seconds"]["max"]
            axes.plot([low, high], [position + 0.38] * 2, color="#222222", linewidth=1.2, solid_capstyle="butt")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
