"""The picture of memory against time: points of each source with their intervals, and the planner's curve as a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cllm.comparison.axes import Linear, Log
from cllm.comparison.labels import place
from cllm.comparison.picture import WIDTH, check_picture
from cllm.comparison.series import LINES, MEMORY, SECONDS, Point, Series, label_of, pairs_of, strokes_of

FONT = 8.5
SIDES = {"start": "left", "middle": "center", "end": "right"}
LETTER, LINE = 0.56 * FONT, 1.2 * FONT  # of matplotlib's own font, in points


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind of series is drawn. Hues are colour-blind safe (Okabe and Ito), and marks differ as well."""

    colour: str
    mark: str
    line: str = ""


LOOKS = {"strategies": Look("#0072B2", "o"), "budgets": Look("#009E73", "D"), "peers": Look("#D55E00", "s"),
         "curve": Look("#009E73", "", "-"), "front": Look("#0072B2", "", "-"), "peers' front": Look("#D55E00", "", "-")}


def draw_curve(panels: Sequence[tuple[str, Sequence[Series]]], path: Path, caption: str = "", memory: str = MEMORY) -> None:
    """Draw `curve_figure` as PNG or SVG, by the ending of `path`."""
    check_picture(path)
    curve_figure(panels, caption, memory).savefig(path, dpi=130)


def curve_figure(panels: Sequence[tuple[str, Sequence[Series]]], caption: str = "", memory: str = MEMORY):
    """matplotlib's figure: a panel for each pair of title and series, below each other; `memory` says which memory it is."""
    from matplotlib.figure import Figure  # no pyplot: no display, no state

    figure = Figure(figsize=(WIDTH, 5.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False).flatten()
    if caption:
        figure.suptitle(caption, fontsize=10)
    for axis, (title, series) in zip(axes, panels, strict=True):
        _draw_panel(axis, title, series, memory)
    keys = {label: key for axis in axes for key, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(keys.values(), keys, fontsize=FONT, frameon=False, loc="outside lower center", ncols=2)
    figure.draw_without_rendering()  # the layout decides where points lie, and from here on stays as it is
    figure.set_layout_engine("none")
    for axis, (_, series) in zip(axes, panels, strict=True):
        _write_names(axis, series)
    return figure


def _draw_panel(axis, title: str, panel: Sequence[Series], memory: str) -> None:
    for series, predicted, measured in pairs_of(panel):
        axis.plot([predicted.nbytes / 1e6, measured.nbytes / 1e6], [predicted.seconds, measured.seconds], linewidth=0.8,
                  linestyle=":", color=LOOKS[series.kind].colour)
    for series in panel:
        look = LOOKS[series.kind]
        for p in series.points:
            if p.low is not None:
                axis.plot([p.nbytes / 1e6] * 2, [p.low, p.high], color=look.colour, linewidth=1, alpha=0.45)
        axis.plot([p.nbytes / 1e6 for p in series.points], [p.seconds for p in series.points], linestyle=look.line,
                  drawstyle="steps-post" if series.kind == "curve" else "default", linewidth=1.1, marker=look.mark,
                  markersize=6, color=look.colour, markerfacecolor=look.colour if series.measured else "white",
                  label=series.title)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(memory)
    axis.set_ylabel(SECONDS)
    axis.grid(color="#e2e2e2", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if panel:
        _set_scales(axis, panel)


def _set_scales(axis, panel: Sequence[Series]) -> None:
    from matplotlib.ticker import NullLocator

    points = [p for series in panel for p in series.points]
    across = Linear.around([p.nbytes / 1e6 for p in points])
    up = Log.around([s for p in points for s in (p.low or p.seconds, p.high or p.seconds)])
    axis.set_yscale("log")
    axis.set_xlim(across.low, across.high)
    axis.set_ylim(up.low, up.high)
    axis.set_xticks(across.marks(), [f"{mark:,.4g}" for mark in across.marks()])
    axis.set_yticks(up.marks(), [f"{mark:,.4g}" for mark in up.marks()])
    axis.yaxis.set_minor_locator(NullLocator())


def _write_names(axis, panel: Sequence[Series]) -> None:
    """Names beside the measured points. Places are reckoned in points of 1/72 inch, downwards from the figure's top."""
    scale = 72.0 / axis.figure.dpi
    top = axis.figure.bbox.height * scale

    def at(point: Point) -> tuple[float, float]:
        across, up = axis.transData.transform((point.nbytes / 1e6, point.seconds))
        return across * scale, top - up * scale

    marked = [(series, p) for series in panel if series.kind not in LINES for p in series.points]
    named = [(series, p) for series, p in marked if series.measured]
    lines = [(*at(one), *at(other)) for one, other in strokes_of(panel)]
    box = axis.get_window_extent()
    room = (box.x0 * scale, top - box.y1 * scale, box.x1 * scale, top - box.y0 * scale)
    colours = {at(p): LOOKS[series.kind].colour for series, p in named}
    for label in place([(*at(p), label_of(p)) for _, p in named], [at(p) for _, p in marked], lines, room, LETTER, LINE):
        _, above, _, below = label.box
        anchor, x = label.anchor
        arrow = {"arrowstyle": "-", "color": colours[label.x, label.y], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        axis.annotate(label.name, (label.x, top - label.y), xycoords="figure points", fontsize=FONT,
                      xytext=(x, top - (above + below) / 2), textcoords="figure points", ha=SIDES[anchor],
                      va="center", arrowprops=arrow if label.far else None)
