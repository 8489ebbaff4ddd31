"""What the pictures share: colours, and an empty figure in the project's manner."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# Colour-blind safe (Okabe and Ito). What runs, in the order of a step:
COLOURS = {"forward": "#0072B2", "rebuild": "#E69F00", "backward": "#009E73", "accumulate": "#56B4E9",
           "zero_grad": "#bbbbbb", "clip": "#888888", "adamw": "#CC79A7"}
OTHER = "#444444"
# What is alive, from the bottom up:
BUFFERS = {"kept": "#0072B2", "packed": "#CC79A7", "rebuilt": "#E69F00", "passing": "#56B4E9", "gradient": "#009E73",
           "stash": "#F0E442", "scratch": "#999999", "weights": "#D55E00", "states": "#000000",
           "partial": "#8C564B", "message": "#BCBD22"}
OURS, THEIRS = "#0072B2", "#D55E00"
SERIES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")


def in_order(kinds: Iterable[str]) -> list[str]:
    """Kinds of operation, each once, in the order of a step; those without a place of their own come last."""
    found = dict.fromkeys(kinds)
    return [kind for kind in COLOURS if kind in found] + [kind for kind in found if kind not in COLOURS]


WIDTH = 8.0  # inches of every picture: panels stand below each other, so that letters stay legible on a narrow screen
DPI = 130


def matplotlib_is_there() -> bool:
    """Whether pictures can be drawn; a word about it where not."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no picture: matplotlib is missing (pip install '.[plot]')", file=sys.stderr)
        return False
    return True


def figure(heights: Sequence[float], title: str, **options):
    """A figure with a panel of each height (in inches) below each other, and the panels; (None, None) where matplotlib is
    missing."""
    if not matplotlib_is_there():
        return None, None
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDTH, 0.4 + sum(heights)), layout="constrained")
    made.suptitle(title, fontsize=10)
    axes = made.subplots(len(heights), 1, squeeze=False, height_ratios=heights, **options).flatten()
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e2e2e2", linewidth=0.7)
        one.set_axisbelow(True)
    return made, axes


def save(figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=DPI)
