"""Pictures of the profiling scripts. Each does nothing, and says so, where matplotlib is missing."""

import sys
from collections.abc import Iterable
from pathlib import Path

# Colour-blind safe (Okabe and Ito). What runs, in the order of a step:
COLOURS = {"forward": "#0072B2", "rebuild": "#E69F00", "backward": "#009E73", "accumulate": "#56B4E9",
           "zero_grad": "#bbbbbb", "clip": "#888888", "adamw": "#CC79A7"}
OTHER = "#444444"
# What is alive, from the bottom up:
BUFFERS = {"kept": "#0072B2", "rebuilt": "#E69F00", "passing": "#56B4E9", "gradient": "#009E73", "stash": "#F0E442",
           "scratch": "#999999"}
OURS, THEIRS = "#0072B2", "#D55E00"


def in_order(kinds: Iterable[str]) -> list[str]:
    """Kinds of operation, each once, in the order of a step; those without a place of their own come last."""
    found = dict.fromkeys(kinds)
    return [kind for kind in COLOURS if kind in found] + [kind for kind in found if kind not in COLOURS]


def _figure(rows: int, columns: int, size: tuple[float, float], title: str, **options):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is missing (pip install 'cllm[plot]')", file=sys.stderr)
        return None, None
    figure = Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e2e2e2", linewidth=0.7)
        one.set_axisbelow(True)
    return figure, axes


def memory_against_time(panels: list[tuple[str, list[dict]]], path: Path) -> None:
    """Growth of the process against the time of a step, a panel for each (title, rows): one point a contestant with the
    spread of its rounds; a line joins, for cllm and for PyTorch, those that no other of the same side beats in both."""
    figure, axes = _figure(1, len(panels), (2 + 6 * len(panels), 5), "")
    if figure is None:
        return
    for axis, (title, rows) in zip(axes.flat, panels, strict=True):
        shown = [row for row in rows if row["growth_bytes"] is not None]
        for colour, side in ((OURS, [row for row in shown if not row["name"].startswith("torch")]),
                             (THEIRS, [row for row in shown if row["name"].startswith("torch")])):
            _draw_contestants(axis, side, colour)
        axis.set_title(title, fontsize=10)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("seconds of one step: median, and least to most")
    axes[0, 0].set_ylabel("growth of the process over the model, MB (10⁶ bytes)")
    figure.savefig(path, dpi=150)


def _draw_contestants(axis, rows: list[dict], colour: str) -> None:
    points = {row["name"]: (row["seconds"]["median"], row["growth_bytes"] / 1e6) for row in rows}
    best = sorted(point for point in points.values()
                  if not any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in points.values()))
    if best:
        axis.plot(*zip(*best, strict=True), color=colour, linewidth=1, alpha=0.7)
    for row in rows:
        x, y = points[row["name"]]
        axis.plot([row["seconds"]["min"], row["seconds"]["max"]], [y, y], color=colour, linewidth=1, alpha=0.4)
        axis.plot(x, y, "o", color=colour, markersize=6)
        axis.annotate(row["name"], (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)


def timelines(rows: list[dict], title: str, path: Path) -> None:
    """Predicted timeline, arena's record and the system's samples of each strategy, one panel each, axes shared."""
    figure, axes = _figure(1, max(1, len(rows)), (max(8, 6 * len(rows)), 5), title, sharey=True)
    if figure is None or not rows:
        return
    top = max(row["total_bytes"] for row in rows) / 1e6
    for axis, row in zip(axes.flat, rows, strict=True):
        _draw_timeline(axis, row)
        axis.set_title(f"{row['name']}: one step, {min(row['step_seconds']):.3g} s", fontsize=11)
        axis.set_xlabel("share of the step")
        axis.set_xlim(0, 1)
    axes[0, 0].set_ylabel("MB (10⁶ bytes)")
    axes[0, 0].set_ylim(bottom=-0.05 * top)
    _timeline_legend(figure, rows)
    figure.savefig(path, dpi=150)


def _draw_timeline(axis, row: dict) -> None:
    timeline = row["timeline"]
    fixed = (row["total_bytes"] - row["arena_bytes"]) / 1e6
    edges = [0.0, *timeline["ends"]]
    axis.axhspan(0, fixed, color="#dddddd", linewidth=0)
    below = [fixed] * len(timeline["ends"])
    for kind, colour in BUFFERS.items():
        above = [low + nbytes / 1e6 for low, nbytes in zip(below, timeline["by_kind"][kind], strict=True)]
        axis.stairs(above, edges, baseline=below, fill=True, color=colour, alpha=0.75, linewidth=0)
        below = above
    for start, end, name in zip(edges[:-1], edges[1:], timeline["operations"], strict=True):
        axis.axvspan(start, end, color=COLOURS.get(name.split()[0], OTHER), ymin=0, ymax=0.04, linewidth=0)
    axis.axhline(0, color="white", linewidth=1.5)
    axis.axhline(fixed + row["high_water_bytes"] / 1e6, color="black", linestyle="--", linewidth=1.4, zorder=4)
    first = row["step_seconds"][0]
    samples = [(moment / first, nbytes) for moment, nbytes in row["samples"] if moment <= first]
    axis.plot([moment for moment, _ in samples], [(nbytes - (row["rss_start_bytes"] or 0)) / 1e6
                                                  for _, nbytes in samples], color="#D55E00", linewidth=1.6, zorder=3)


def _timeline_legend(figure, rows: list[dict]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    alive = [kind for kind in BUFFERS if any(any(row["timeline"]["by_kind"][kind]) for row in rows)]
    kinds = in_order(name.split()[0] for row in rows for name in row["timeline"]["operations"])
    handles = [Line2D([], [], color="black", linestyle="--", linewidth=1.4, label="arena's own record"),
               Line2D([], [], color="#D55E00", linewidth=1.6, label="memory_profiler: process less its start"),
               Patch(color="#dddddd", label="parameters, gradients, optimizer, batch")]
    handles += [Patch(color=BUFFERS[kind], alpha=0.75, label=f"predicted: {kind}") for kind in alive]
    handles += [Patch(color=COLOURS[kind], label=f"strip: {kind}") for kind in kinds if kind in COLOURS]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def step_parts(rows: list[dict], title: str, path: Path) -> None:
    """Left: a step of each strategy by kind of operation. Right: the first strategy's by step of the program."""
    figure, axes = _figure(1, 2, (13, 5), title)
    if figure is None or not rows:
        return
    left, right = axes[0]
    kinds = in_order(kind for row in rows for kind in row["by_kind"])
    _stacked(left, [row["name"] for row in rows], [row["by_kind"] for row in rows], kinds, 1.0)
    for position, row in enumerate(rows):
        left.plot(row["seconds"]["median"], position, "D", color="black", markersize=4)
    left.set_xlabel("seconds of one step (diamond: the whole step, without instruments)")
    left.set_ylim(max(5, len(rows)) - 0.5, -0.5)
    steps = sorted(rows[0]["by_step"].items(), key=lambda item: -sum(item[1].values()))[:14]
    _stacked(right, [name for name, _ in steps], [by for _, by in steps], kinds, 1e3)
    right.set_xlabel(f"milliseconds, all blocks together, {rows[0]['name']}")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)


def _stacked(axis, names: list[str], parts: list[dict[str, float]], kinds: list[str], scale: float) -> None:
    left = [0.0] * len(names)
    for kind in kinds:
        widths = [one.get(kind, 0.0) * scale for one in parts]
        axis.barh(range(len(names)), widths, left=left, color=COLOURS.get(kind, OTHER), label=kind, height=0.62)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def kernel_speeds(rows: list[dict], title: str, path: Path) -> None:
    """One line a kernel and shape, one mark a library: share of the machine's measured limit."""
    figure, axes = _figure(1, 1, (9, 1.5 + 0.26 * len(rows)), title)
    if figure is None or not rows:
        return
    axis = axes[0, 0]
    marks = {"cllm": ("o", OURS), "numpy": ("s", "#009E73"), "torch": ("D", THEIRS)}
    for library, (mark, colour) in marks.items():
        points = [(row["share"][library], position) for position, row in enumerate(rows)
                  if row["share"].get(library) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), mark, color=colour, label=library, markersize=6, alpha=0.85)
    axis.set_yticks(range(len(rows)), [f"{row['kernel']} {'×'.join(map(str, row['shape']))}" for row in rows],
                    fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("share of the measured limit: FMA peak for products and attention, copy bandwidth for the others")
    axis.legend(fontsize=9, frameon=False, loc="best")
    figure.savefig(path, dpi=150)
