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


def title(data: dict) -> str:
    """What a result is of, in one line; with words for what it has."""
    config, words = data.get("config"), []
    settings = {**data, **data.get("settings", {})}
    if config:
        words.append(f"{config['n_layers']} layers, C {config['d_model']}, H {config['n_heads']}, F {config['d_ff']}, "
                     f"V {config['vocab_size']}")
        words.append(f"batch {settings['batch_size']} × {settings['seq_len']}")
    threads = settings["threads"]
    return "; ".join([*words, f"{threads} thread{'' if threads == 1 else 's'}"])


def write_labels(axis, marks: list[tuple[float, float, str]], size: float = 7.5, lift: float = 0.0) -> None:
    """Names beside their points, `(x, y, name)`, moved up or down until none lies on another; thin lines lead back.

    Limits and scales of the axis must stand. Names go to the right of their points, from the top down, each as near to
    its own height as those placed before leave room for.
    """
    figure = axis.figure
    figure.draw_without_rendering()  # the layout decides where points lie
    scale = 72.0 / figure.dpi
    height, placed = size * 1.25, []
    spots = sorted(((*(axis.transData.transform((x, y)) * scale), x, y, name) for x, y, name in marks),
                   key=lambda spot: -spot[1])
    for across, up, x, y, name in spots:
        width = 0.62 * size * len(name)
        start, middle = across + 7, up
        for shift in sorted((k * height / 4 for k in range(-160, 161)), key=abs):
            middle = up + lift + shift
            if all(abs(middle - other) >= height or start + width < left or right < start for left, right, other in placed):
                break
        placed.append((start, start + width, middle))
        axis.annotate(name, (x, y), xytext=(7, middle - up), textcoords="offset points", fontsize=size, va="center",
                      arrowprops=None if abs(middle - up - lift) < height / 2 else
                      {"arrowstyle": "-", "color": "#888888", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2})
