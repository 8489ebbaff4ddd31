"""Pictures of the profiling scripts. Each does nothing, and says so, where matplotlib is missing."""

import sys
from pathlib import Path

# Colour-blind safe (Okabe and Ito), by kind of operation.
COLOURS = {"forward": "#0072B2", "rebuild": "#E69F00", "backward": "#009E73", "zero_grad": "#bbbbbb", "clip": "#999999",
           "adamw": "#CC79A7"}
OTHER = "#56B4E9"
OURS, THEIRS = "#0072B2", "#D55E00"


def _figure(rows: int, columns: int, size: tuple[float, float], title: str, **options):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is missing (pip install 'cllm[plot]')", file=sys.stderr)
        return None, None
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e2e2e2", linewidth=0.7)
        one.set_axisbelow(True)
    return figure, axes


def memory_against_time(rows: list[dict], title: str, path: Path) -> None:
    """One point a contestant: growth of the process against the time of a step, with the spread of rounds."""
    from_rounds = [row for row in rows if row["growth_bytes"] is not None]
    figure, axes = _figure(1, 1, (8, 5), title)
    if figure is None or not from_rounds:
        return
    axis = axes[0, 0]
    for row in from_rounds:
        colour = THEIRS if row["name"].startswith("torch") else OURS
        x, y = row["seconds"]["median"], row["growth_bytes"] / 1e6
        axis.plot([row["seconds"]["min"], row["seconds"]["max"]], [y, y], color=colour, linewidth=1, alpha=0.6)
        axis.plot(x, y, "o", color=colour, markersize=7)
        axis.annotate(row["name"], (x, y), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("seconds of one step: median, and least to most")
    axis.set_ylabel("growth of the process over the model, MB (10⁶ bytes)")
    figure.savefig(path, dpi=150)


def timelines(rows: list[dict], title: str, path: Path) -> None:
    """Predicted timeline, arena's record and the system's samples of each strategy, one panel each, axes shared."""
    figure, axes = _figure(1, max(1, len(rows)), (6 * max(1, len(rows)), 4.6), title, sharey=True)
    if figure is None or not rows:
        return
    for axis, row in zip(axes.flat, rows, strict=True):
        fixed = row["total_bytes"] - row["arena_bytes"]
        for start, end, label, nbytes in row["timeline"]:
            kind = label.split()[0] if label else ""
            axis.fill_between([start, end], fixed / 1e6, (fixed + nbytes) / 1e6, linewidth=0,
                              color=COLOURS.get(kind, OTHER), alpha=0.55)
        axis.axhspan(0, fixed / 1e6, color="#dddddd", linewidth=0, zorder=0)
        axis.axhline((fixed + row["high_water_bytes"]) / 1e6, color="black", linestyle="--", linewidth=1.2)
        base = row["rss_start_bytes"] or 0
        first = [(moment, nbytes) for moment, nbytes in row["samples"] if moment <= row["step_seconds"][0]]
        axis.plot([moment for moment, _ in first], [(nbytes - base) / 1e6 for _, nbytes in first], color="#D55E00",
                  linewidth=1.6)
        axis.set_title(row["name"], fontsize=11)
        axis.set_xlabel("seconds within a step")
        axis.set_xlim(left=0)
    axes[0, 0].set_ylabel("MB (10⁶ bytes)")
    axes[0, 0].set_ylim(bottom=0)
    _timeline_legend(figure, rows)
    figure.savefig(path, dpi=150)


def _timeline_legend(figure, rows: list[dict]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = {label.split()[0] for row in rows for _, _, label, _ in row["timeline"] if label}
    handles = [Patch(color=COLOURS[kind], alpha=0.55, label=f"predicted live bytes, {kind}")
               for kind in COLOURS if kind in kinds]
    handles += [Patch(color="#dddddd", label="parameters, gradients, optimizer, batch"),
                Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="arena's own record"),
                Line2D([], [], color="#D55E00", linewidth=1.6, label="memory_profiler, process less its start")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def step_parts(rows: list[dict], title: str, path: Path) -> None:
    """Left: a step of each strategy by kind of operation. Right: the first strategy's by step of the program."""
    figure, axes = _figure(1, 2, (13, 5), title)
    if figure is None or not rows:
        return
    left, right = axes[0]
    _stacked(left, [row["name"] for row in rows], [row["by_kind"] for row in rows], 1.0)
    for position, row in enumerate(rows):
        left.plot(row["seconds"]["median"], position, "D", color="black", markersize=4)
    left.set_xlabel("seconds of one step (diamond: the whole step, without instruments)")
    steps = sorted(rows[0]["by_step"].items(), key=lambda item: -sum(item[1].values()))[:14]
    _stacked(right, [name for name, _ in steps], [by for _, by in steps], 1e3)
    right.set_xlabel(f"milliseconds, all blocks together, {rows[0]['name']}")
    figure.savefig(path, dpi=150)


def _stacked(axis, names: list[str], parts: list[dict[str, float]], scale: float) -> None:
    kinds = list(dict.fromkeys([kind for kind in COLOURS for one in parts if kind in one]
                               + [kind for one in parts for kind in one]))
    left = [0.0] * len(names)
    for kind in kinds:
        widths = [one.get(kind, 0.0) * scale for one in parts]
        axis.barh(range(len(names)), widths, left=left, color=COLOURS.get(kind, OTHER), label=kind, height=0.62)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(fontsize=8, frameon=False, loc="lower right")


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
