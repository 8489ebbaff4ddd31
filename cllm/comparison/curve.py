"""The picture of memory against time: points of each source, and the planner's curve as a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cllm.comparison.picture import MEGABYTES, check_picture
from cllm.comparison.series import Series


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind of series is drawn. Hues are colour-blind safe (Okabe and Ito), and marks differ as well."""

    colour: str
    mark: str
    filled: bool
    line: str = ""


LOOKS = {"curve": Look("#56B4E9", ".", True, "-"), "predicted": Look("#0072B2", "o", False),
         "measured": Look("#0072B2", "o", True), "peers": Look("#D55E00", "s", True)}
NAMED = ("measured", "peers")  # whose points have their names beside them


def draw_curve(panels: Sequence[tuple[str, Sequence[Series]]], path: Path, caption: str = "") -> None:
    """Draw as PNG or SVG, by the ending of `path`: a panel for each pair of title and series, side by side."""
    check_picture(path)
    from matplotlib.figure import Figure  # no pyplot: no display, no state

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(9, 6 * columns), 5.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (title, series) in zip(axes, panels, strict=False):
        _draw_panel(axis, title, series)
    for axis in axes[len(panels):]:
        axis.set_visible(False)
    if caption:
        figure.suptitle(caption, fontsize=10)
    figure.savefig(path, dpi=130)


def _draw_panel(axis, title: str, panel: Sequence[Series]) -> None:
    for series in panel:
        look = LOOKS[series.kind]
        axis.plot([p.nbytes / 1e6 for p in series.points], [p.seconds for p in series.points], linestyle=look.line,
                  drawstyle="steps-post", marker=look.mark, markersize=4 if look.line else 8, color=look.colour,
                  markerfacecolor=look.colour if look.filled else "none", label=series.title)
        for p in series.points if series.kind in NAMED else ():
            axis.annotate(p.name, (p.nbytes / 1e6, p.seconds), textcoords="offset points", xytext=(6, 5), fontsize=8)
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(f"memory of the training, {MEGABYTES}")
    axis.set_ylabel("seconds a step")
    axis.margins(x=0.15)  # for the names of points at the right end
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    if panel:
        axis.legend(fontsize=8)
