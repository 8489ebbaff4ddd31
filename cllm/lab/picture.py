"""The picture of measured bytes against measured seconds: a line and a mark for each strategy, named where it has room.

Lines are told apart by mark and dash as well as by hue, so that they are without colour, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from cllm.comparison.axes import Linear, Log
from cllm.comparison.labels import Label, place
from cllm.comparison.picture import caption, check_picture
from cllm.comparison.series import MEMORY, SECONDS, Point, front_of, growth_bytes
from cllm.lab.report import OURS

WIDTH, HEIGHT = 9.0, 7.5
FONT = 8.5
LETTER, LINE = 0.56 * FONT, 1.2 * FONT
SIDES = {"start": "left", "middle": "center", "end": "right"}
AIR = {"start": 2.0, "middle": 0.0, "end": -2.0}  # between names side by side; letters are narrower than their boxes
# Colour-blind safe (Okabe and Ito), each with a mark and a dash of its own.
LOOKS = (("#D55E00", "s", (0, (5, 2))), ("#0072B2", "o", (0, (1, 1.5))), ("#CC79A7", "^", (0, (3, 1, 1, 1))),
         ("#E69F00", "v", (0, (6, 1.5, 1, 1.5, 1, 1.5))), ("#56B4E9", "P", (0, (2, 2))), ("#000000", "X", (0, (8, 2, 2, 2))),
         ("#7f7f7f", "*", (0, (4, 4))), ("#8c564b", "<", (0, (1, 3))), ("#0072B2", ">", (0, (7, 3))),
         ("#D55E00", "h", (0, (3, 3, 1, 3))), ("#CC79A7", "p", (0, (10, 2))), ("#E69F00", "d", (0, (2, 1))))
OURS_LOOK = ("#009E73", "D", "-")
PEERS_LOOK = ("#000000", "$\\mathrm{T}$", "")


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn of one strategy: its points from least bytes to most."""

    name: str
    points: tuple[Point, ...]
    look: tuple


def curves_of(report: dict) -> list[Curve]:
    """A curve for each kind of strategy, ours first; then PyTorch's points, where there are any."""
    kinds: dict[str, list[Point]] = {}
    for row in report["rows"]:
        if row["step_seconds"]:
            nbytes = growth_bytes(row) or row["total_bytes"]
            step = row["step_seconds"]
            kinds.setdefault(row["kind"], []).append(Point(nbytes, step["median"], row["strategy"], step["min"], step["max"]))
    looks = iter(LOOKS * (1 + len(kinds) // len(LOOKS)))
    made = []
    for kind in sorted(kinds, key=lambda kind: kind != OURS):
        points = sorted(kinds[kind], key=lambda p: (p.nbytes, p.seconds))
        made.append(Curve("the planner" if kind == OURS else kind, tuple(points), OURS_LOOK if kind == OURS else next(looks)))
    for peers in report.get("peers") or []:
        points = (Point(p["memory_bytes"], p["step_seconds"], p["name"]) for p in peers["points"])
        made.append(Curve("PyTorch", tuple(sorted(points, key=lambda p: p.nbytes)), PEERS_LOOK))
    return made


def draw_lab(report: dict, path: Path) -> None:
    """Draw a report of the laboratory as PNG or SVG, by the ending of `path`; raises `DataError` where that cannot be."""
    check_picture(path)
    lab_figure(report)[0].savefig(path, dpi=130)


def lab_figure(report: dict):
    """matplotlib's figure, and the labels that stand in it."""
    from matplotlib.figure import Figure  # no pyplot: no display, no state

    curves = curves_of(report)
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axis = figure.subplots()
    for curve in curves:
        colour, mark, dash = curve.look
        for p in curve.points:
            if p.low is not None:
                axis.plot([p.nbytes / 1e6] * 2, [p.low, p.high], color=colour, linewidth=1, alpha=0.4)
        xs, ys = [p.nbytes / 1e6 for p in curve.points], [p.seconds for p in curve.points]
        line = axis.plot(xs, ys, linestyle=dash or "none", marker=mark, color=colour, markersize=6.5 if curve.name != "PyTorch"
                         else 8, linewidth=2 if curve.look is OURS_LOOK else 1, label=curve.name,
                         markerfacecolor=colour if curve.look is OURS_LOOK else "white")
        line[0].set_zorder(3 if curve.look is OURS_LOOK else 2)
    front = front_of([p for curve in curves for p in curve.points if curve.name != "PyTorch"])
    if front:
        axis.plot([p.nbytes / 1e6 for p in front], [p.seconds for p in front], drawstyle="steps-post", color="#999999",
                  linewidth=5, alpha=0.35, zorder=1, label="best of all measured")
    _scales(axis, [p for curve in curves for p in curve.points])
    figure.suptitle(f"{caption(report)}\nintervals: least to most of a round's median", fontsize=9.5)
    axis.set_xlabel(MEMORY.replace("memory", "measured memory"))
    axis.set_ylabel(SECONDS + ", measured")
    axis.grid(color="#e2e2e2", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if curves:
        figure.legend(fontsize=FONT, frameon=False, loc="outside lower center", ncols=5, handlelength=4)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure, _name_curves(axis, curves)


def _scales(axis, points: Sequence[Point]) -> None:
    from matplotlib.ticker import NullLocator

    if not points:
        return
    across = Linear.around([p.nbytes / 1e6 for p in points])
    up = Log.around([s for p in points for s in (p.low or p.seconds, p.high or p.seconds)])
    axis.set_yscale("log")
    axis.set_xlim(across.low, across.high)
    axis.set_ylim(up.low, up.high)
    axis.set_xticks(across.marks(), [f"{mark:,.4g}" for mark in across.marks()])
    axis.set_yticks(up.marks(), [f"{mark:,.4g}" for mark in up.marks()])
    axis.yaxis.set_minor_locator(NullLocator())


def _name_curves(axis, curves: Sequence[Curve]) -> list[Label]:
    """Each curve's name once, beside that of its points which has most room; PyTorch's points each by theirs."""
    scale = 72.0 / axis.figure.dpi
    top = axis.figure.bbox.height * scale

    def at(point: Point) -> tuple[float, float]:
        across, up = axis.transData.transform((point.nbytes / 1e6, point.seconds))
        return across * scale, top - up * scale

    every = [at(p) for curve in curves for p in curve.points]
    lines = [(*at(a), *at(b)) for curve in curves if curve.look[2] for a, b in pairwise(curve.points)]
    lines += [(*at(replace(p, seconds=p.low)), *at(replace(p, seconds=p.high)))
              for curve in curves for p in curve.points if p.low]
    box = axis.get_window_extent()
    room = (box.x0 * scale, top - box.y1 * scale, box.x1 * scale, top - box.y0 * scale)

    def alone(spot: tuple[float, float]) -> float:
        """Distance to the nearest point of another place."""
        return min((abs(spot[0] - x) + 2 * abs(spot[1] - y) for x, y in every if (x, y) != spot), default=1e9)

    named, colours = [], {}
    for curve in curves:
        spots = [(at(p), p.name if curve.name == "PyTorch" else curve.name) for p in curve.points]
        chosen = spots if curve.name == "PyTorch" else [max(spots, key=lambda one: alone(one[0]))] if spots else []
        named += [(*spot, name) for spot, name in chosen]
        colours |= {name: curve.look[0] for _, name in chosen}
    labels = place(named, every, lines, room, LETTER, LINE)
    for label in labels:
        _, above, _, below = label.box
        anchor, x = label.anchor
        arrow = {"arrowstyle": "-", "color": colours[label.name], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        axis.annotate(label.name, (label.x, top - label.y), xycoords="figure points", fontsize=FONT, color="black",
                      xytext=(x + AIR[anchor], top - (above + below) / 2), textcoords="figure points", ha=SIDES[anchor],
                      va="center", arrowprops=arrow if label.far else None, zorder=5,
                      bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5})
    return labels
