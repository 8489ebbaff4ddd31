"""Pictures of memory: over one step, and against the time of a step."""

from pathlib import Path

from words import title

from pictures.figure import BUFFERS, COLOURS, OTHER, OURS, SERIES, THEIRS, in_order, write_labels
from pictures.figure import figure as new_figure


def memory_against_time(results: list[dict], path: Path) -> None:
    """Growth of the process against the time of a step, a panel for each result of `compare.py`: one point a contestant
    with the spread of its rounds; a line joins, for cllm and for PyTorch, those that no other of the same side beats in
    both."""
    figure, axes = new_figure(1, len(results), (2 + 6 * len(results), 5), "")
    if figure is None or not any(data["rows"] for data in results):
        return
    for axis, data in zip(axes.flat, results, strict=True):
        shown = [row for row in data["rows"] if row["growth_bytes"] is not None]
        for colour, side in ((OURS, [row for row in shown if not row["name"].startswith("torch")]),
                             (THEIRS, [row for row in shown if row["name"].startswith("torch")])):
            _draw_contestants(axis, side, colour)
        axis.set_title(title(data), fontsize=10)
        axis.margins(x=0.05, y=0.1)
        left, right = axis.get_xlim()
        axis.set_xlim(left, right + 0.2 * (right - left))  # room for the names
        axis.set_ylim(bottom=0)
        axis.set_xlabel("seconds of one step: median, and least to most")
    axes[0, 0].set_ylabel("growth of the process over the model, MB (10⁶ bytes)")
    for axis, data in zip(axes.flat, results, strict=True):
        write_labels(axis, [(row["seconds"]["median"], row["growth_bytes"] / 1e6, row["name"]) for row in data["rows"]
                            if row["growth_bytes"] is not None], lift=6)
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


def timelines(data: dict, path: Path) -> None:
    """Predicted timeline, arena's record and the system's samples of each strategy, one panel each, axes shared."""
    rows = [row for row in data["rows"] if row["name"] in data["drawn"]]
    columns = min(3, max(1, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    figure, axes = new_figure(lines, columns, (max(8, 6 * columns), 1 + 4 * lines), title(data), sharey=True)
    if figure is None or not rows:
        return
    for axis in axes.flat[len(rows):]:
        axis.set_axis_off()
    top = max(max([row["total_bytes"] / 1e6, *(size for _, size in _samples(row))]) for row in rows)
    for axis, row in zip(axes.flat, rows, strict=False):
        _draw_timeline(axis, row)
        axis.set_title(f"{row['name']}: one step, {min(row['step_seconds']):.3g} s", fontsize=11)
        axis.set_xlabel("share of the step")
        axis.set_xlim(0, 1)
    for axis in axes[:, 0]:
        axis.set_ylabel("MB (10⁶ bytes)")
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
    axis.annotate(f"{fixed + row['high_water_bytes'] / 1e6:.1f} MB", (0.985, fixed + row["high_water_bytes"] / 1e6), ha="right",
                  fontsize=9, xytext=(0, 5), textcoords="offset points")
    if samples := _samples(row):
        axis.plot(*zip(*samples, strict=True), color="#D55E00", linewidth=1.6, zorder=3)


def _samples(row: dict) -> list[tuple[float, float]]:
    """Of the first step: its share that had passed, and MB of the process over its start."""
    first, start = row["step_seconds"][0], row["rss_start_bytes"] or 0
    return [(moment / first, (nbytes - start) / 1e6) for moment, nbytes in row["samples"] if moment <= first]


def _timeline_legend(figure, rows: list[dict]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    alive = [kind for kind in BUFFERS if any(any(row["timeline"]["by_kind"][kind]) for row in rows)]
    kinds = in_order(name.split()[0] for row in rows for name in row["timeline"]["operations"])
    handles = [Line2D([], [], color="black", linestyle="--", linewidth=1.4, label="arena's own record")]
    if any(_samples(row) for row in rows):
        handles.append(Line2D([], [], color="#D55E00", linewidth=1.6, label="memory_profiler: process less its start"))
    handles.append(Patch(color="#dddddd", label="parameters, gradients, optimizer, batch"))
    handles += [Patch(color=BUFFERS[kind], alpha=0.75, label=f"predicted: {kind}") for kind in alive]
    handles += [Patch(color=COLOURS[kind], label=f"strip: {kind}") for kind in kinds if kind in COLOURS]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def curve(data: dict, path: Path) -> None:
    """Memory against time: every strategy as measured, with the spread of its rounds, and as predicted; the planner's
    curve as predicted (line) and as measured (joined points)."""
    figure, axes = new_figure(1, 1, (9.5, 6.5), title(data))
    rows = data["rows"]
    if figure is None or not rows:
        return
    axis = axes[0, 0]
    named, budgets = [[row for row in rows if row["is_budget"] == which] for which in (False, True)]
    if data["curve"]:
        axis.step([point["seconds"] for point in data["curve"]], [point["total_bytes"] / 1e6 for point in data["curve"]],
                  where="post", color=THEIRS, linewidth=1, linestyle=":", label="the planner's curve, predicted")
    for mine, colour, what in ((named, OURS, "strategies"), (budgets, THEIRS, "the planner's plans for budgets")):
        for row in mine:
            seconds, height = row["seconds"], row["total_bytes"] / 1e6
            axis.plot([min(map(min, seconds["rounds"])), max(map(max, seconds["rounds"]))], [height] * 2, color=colour,
                      linewidth=1, alpha=0.3)
            axis.plot([row["predicted_seconds"], seconds["median"]], [height] * 2, color=colour, linewidth=1,
                      linestyle=":")
        if mine:
            axis.plot([row["predicted_seconds"] for row in mine], [row["total_bytes"] / 1e6 for row in mine], "o",
                      markerfacecolor="white", markeredgecolor=colour, markersize=6, label=f"{what}, predicted")
            line = "o-" if mine is budgets else "o"
            axis.plot([row["seconds"]["median"] for row in mine], [row["total_bytes"] / 1e6 for row in mine], line,
                      color=colour, linewidth=1, markersize=6, label=f"{what}, measured (line: least to most)")
    axis.set_xlabel("seconds of one step")
    axis.set_ylabel("memory of training in all, MB (10⁶ bytes)")
    axis.margins(x=0.12)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    write_labels(axis, [(row["seconds"]["median"], row["total_bytes"] / 1e6, row["name"]) for row in named], lift=6)
    figure.savefig(path, dpi=150)


def growth(data: dict, path: Path) -> None:
    """How arena and time grow, a column for each sweep: layers, then batch."""
    rows = data["rows"]
    figure, axes = new_figure(2, 2, (11, 7.5), "")
    if figure is None or not rows:
        return
    from matplotlib.ticker import LogLocator

    for column, key in enumerate(("layers", "batch")):
        mine = [row for row in rows if row["sweep"] == {"layers": "depth", "batch": "batch"}[key]]
        lengths = sorted({row[key] for row in mine})
        for line, (quantity, what) in enumerate((("arena, MB (10⁶ bytes)", lambda row: row["arena_bytes"] / 1e6),
                                                 ("milliseconds a step", lambda row: row["seconds"]["median"] * 1e3))):
            axis = axes[line, column]
            for number, name in enumerate(dict.fromkeys(row["name"] for row in mine)):
                points = [(row[key], what(row)) for row in mine if row["name"] == name]
                axis.plot(*zip(*points, strict=True), "osD^v"[number % 5] + "-", color=SERIES[number % len(SERIES)],
                          label=name, markersize=5)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(lengths, [str(n) for n in lengths])
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
            axis.set_xlabel(key)
            axis.set_ylabel(quantity)
        if mine:
            axes[0, column].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
