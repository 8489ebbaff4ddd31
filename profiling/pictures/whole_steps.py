"""Pictures of whole steps: what the arena holds over one, and total bytes against seconds."""

from pathlib import Path

from words import title

from pictures.figure import BUFFERS, SERIES, THEIRS, in_order, save
from pictures.figure import figure as new_figure
from pictures.memory import SEEN, draw_operations, spans_of

ALWAYS = ("update", "load_wait", "store_wait")  # kinds of operation that are shown however short they are
MARKS = "os^vD"
PEERS = {"torch eager": "X", "torch checkpoint": "P"}


def steps(data: dict, path: Path) -> None:
    """What the arena holds over one step, a panel for each way with an axis of its own; below each, when each kind of operation
    runs. What is outside the arena is a figure in the panel's title."""
    rows = data["timelines"]
    kinds = in_order(kind for row in rows for kind, spans in spans_of(row).items()
                     if kind in ALWAYS or sum(length for _, length in spans) > SEEN)
    figure, axes = new_figure([2.8, 0.35 + 0.14 * len(kinds)] * len(rows), title(data), sharex=True)
    if figure is None or not rows:
        return
    for axis, strip, row in zip(axes[::2], axes[1::2], rows, strict=True):
        _draw_arena(axis, row)
        draw_operations(strip, row, kinds)
        outside = (row["total_bytes"] - row["arena_bytes"]) / 1e6
        seconds = row["timeline"]["step_seconds"]
        axis.set_title(f"{row['name']}: one step of {seconds:.3g} s; {outside:,.0f} MB outside the arena", fontsize=10)
        axis.set_ylabel("arena, MB (10⁶ bytes)")
        strip.set_xlabel("share of the step")
        strip.tick_params(labelbottom=True)
        axis.set_xlim(0, 1)
    _legend(figure, rows)
    save(figure, path)


def _draw_arena(axis, row: dict) -> None:
    timeline = row["timeline"]
    edges, below = [0.0, *timeline["ends"]], [0.0] * len(timeline["ends"])
    for kind in ("states", *(one for one in BUFFERS if one != "states")):  # the window lowest, where its height is seen
        if kind in timeline["by_kind"]:
            above = [low + nbytes / 1e6 for low, nbytes in zip(below, timeline["by_kind"][kind], strict=True)]
            axis.stairs(above, edges, baseline=below, fill=True, color=BUFFERS[kind], alpha=0.8, linewidth=0)
            below = above
    top = row["arena_bytes"] / 1e6
    axis.axhline(top, color="black", linestyle="--", linewidth=1.2)
    axis.annotate(f"{top:,.1f} MB", (0.985, top), ha="right", fontsize=9, xytext=(0, 4), textcoords="offset points")
    axis.set_ylim(0, 1.15 * top)


def _legend(figure, rows: list[dict]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    words = {"weights": "gradients of parameters", "states": "windows on states on disk",
             "gradient": "gradients of activations"}
    alive = [kind for kind in BUFFERS if any(any(row["timeline"]["by_kind"].get(kind, ())) for row in rows)]
    handles = [Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="the arena, predicted and recorded")]
    handles += [Patch(color=BUFFERS[kind], alpha=0.8, label=words.get(kind, kind)) for kind in alive]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)


def curve(data: dict, path: Path) -> None:
    """Total bytes against seconds, without clipping: the planner's curve for each thing that a budget may decide, plans of the
    whole curve and the ways as measured, PyTorch's steps beside them."""
    figure, axes = new_figure([6.0], title(data))
    if figure is None or not data["budgets"]:
        return
    axis = axes[0]
    for one, colour in zip((one for one in data["budgets"] if one["clip_by"] is None), SERIES, strict=False):
        points = [(point["total_bytes"] / 1e6, point["seconds"]) for point in one["curve"]]
        axis.plot(*zip(*points, strict=True), drawstyle="steps-post", color=colour, linewidth=1.3,
                  label=f"planned: {one['name']}", marker="|", markersize=4)
    for one in data["points"]:
        _mark(axis, one["total_bytes"], one["seconds"], "*", "black", "plans of the whole curve, measured")
    totals = {row["name"]: row["total_bytes"] for row in data["rows"] if row["clip"] is None}
    weights = next(nbytes for name, nbytes, _ in data["timelines"][0]["parts"] if name == "weights")
    shown = [one for one in data["in_turn"] if one["clip"] is None]
    for one, mark in zip((one for one in shown if one["name"] in totals), MARKS, strict=False):
        _mark(axis, totals[one["name"]], one["seconds"], mark, "#666666", f"{one['name']}, measured")
    for one in shown:
        if one["name"] in PEERS and one["growth_bytes"] is not None:
            _mark(axis, one["growth_bytes"] + weights, one["seconds"], PEERS[one["name"]], THEIRS,
                  f"{one['name'].replace('torch', 'PyTorch')}: growth of the process, and weights")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("total, MB (10⁶ bytes)")
    axis.set_ylabel("seconds of one step")
    keys = {label: key for key, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(keys.values(), keys, fontsize=8.5, frameon=False, loc="outside lower center", ncols=2)
    save(figure, path)


def _mark(axis, nbytes: int, seconds: dict, mark: str, colour: str, label: str) -> None:
    """The median, and a line from least to most."""
    axis.plot([nbytes / 1e6] * 2, [seconds["min"], seconds["max"]], color=colour, linewidth=1, alpha=0.6)
    axis.plot([nbytes / 1e6], [seconds["median"]], mark, color=colour, markersize=8, label=label, zorder=3)
