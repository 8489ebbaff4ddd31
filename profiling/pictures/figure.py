"""What the pictures share: colours, an empty figure in the project's manner, names that do not lie on each other."""

import sys
from collections.abc import Iterable

# Colour-blind safe (Okabe and Ito). What runs, in the order of a step:
COLOURS = {"forward": "#0072B2", "rebuild": "#E69F00", "backward": "#009E73", "accumulate": "#56B4E9",
           "zero_grad": "#bbbbbb", "clip": "#888888", "adamw": "#CC79A7"}
OTHER = "#444444"
# What is alive, from the bottom up:
BUFFERS = {"kept": "#0072B2", "packed": "#CC79A7", "rebuilt": "#E69F00", "passing": "#56B4E9", "gradient": "#009E73",
           "stash": "#F0E442", "scratch": "#999999"}
OURS, THEIRS = "#0072B2", "#D55E00"
SERIES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")


def in_order(kinds: Iterable[str]) -> list[str]:
    """Kinds of operation, each once, in the order of a step; those without a place of their own come last."""
    found = dict.fromkeys(kinds)
    return [kind for kind in COLOURS if kind in found] + [kind for kind in found if kind not in COLOURS]


def figure(rows: int, columns: int, size: tuple[float, float], title: str, **options):
    """A figure and its array of axes; (None, None), and a word about it, where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is missing (pip install 'cllm[plot]')", file=sys.stderr)
        return None, None
    made = Figure(figsize=size, layout="constrained")
    if title:
        made.suptitle(title, fontsize=10)
    axes = made.subplots(rows, columns, squeeze=False, **options)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e2e2e2", linewidth=0.7)
        one.set_axisbelow(True)
    return made, axes


MARKER = 3.5  # points from the middle of a point's mark to its edge


def write_labels(axis, marks: list[tuple[float, float, str]], size: float = 7.5, lift: float = 0.0) -> None:
    """Names beside their points, `(x, y, name)`, moved up or down until none lies on another or on a point; thin lines
    lead back.

    Limits and scales of the axis must stand. From the top down, each name goes as near to its own height as those placed
    before leave room for, inside the axes: to the right of its point, or to the left where it would leave them.
    """
    figure = axis.figure
    figure.draw_without_rendering()  # the layout decides where points lie
    scale, half = 72.0 / figure.dpi, size * 1.25 / 2
    box = axis.get_window_extent()
    right_end, low_end, high_end = box.x1 * scale, box.y0 * scale, box.y1 * scale
    spots = sorted(((*(axis.transData.transform((x, y)) * scale), x, y, name) for x, y, name in marks),
                   key=lambda spot: -spot[1])
    taken = [(across - MARKER, across + MARKER, up - MARKER, up + MARKER) for across, up, *_ in spots]
    for across, up, x, y, name in spots:
        width = 0.62 * size * len(name)
        left = across + 7 + width > right_end
        start, middle = across - 7 - width if left else across + 7, up + lift
        for shift in sorted((k * half / 2 for k in range(-160, 161)), key=abs):
            middle = up + lift + shift
            if low_end + half <= middle <= high_end - half and not any(
                    start < end and begin < start + width and middle - half < high and low < middle + half
                    for begin, end, low, high in taken):
                break
        taken.append((start, start + width, middle - half, middle + half))
        axis.annotate(name, (x, y), xytext=(-7 if left else 7, middle - up), textcoords="offset points", fontsize=size,
                      va="center", ha="right" if left else "left", arrowprops=None if abs(middle - up - lift) < half else
                      {"arrowstyle": "-", "color": "#888888", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2})
