"""Pictures of speed: the parts of a step, the roofline, the kernels."""

from pathlib import Path

from words import title

from pictures.figure import COLOURS, OTHER, OURS, THEIRS, in_order, save
from pictures.figure import figure as new_figure

MARKS = "osD^vPX*<>"


def step_parts(data: dict, path: Path) -> None:
    """Above: a step of each strategy by kind of operation. Below: the first strategy's by step of the program."""
    rows, points = data["rows"], data["points"]
    steps = _largest(points, rows[0]["name"]) if rows else []
    figure, axes = new_figure([1.0 + 0.42 * len(rows), 1.0 + 0.28 * max(1, len(steps))], title(data))
    if figure is None or not rows:
        return
    above, below = axes
    kinds = in_order(kind for row in rows for kind in row["by_kind"])
    _stacked(above, [row["name"] for row in rows], [row["by_kind"] for row in rows], kinds, 1.0)
    for position, row in enumerate(rows):
        above.plot(row["seconds"]["median"], position, "D", color="black", markersize=4)
    above.set_xlabel("seconds of one step (diamond: the whole step, without instruments)")
    above.set_xlim(right=1.05 * max(max(sum(row["by_kind"].values()), row["seconds"]["median"]) for row in rows))
    _stacked(below, [name for name, _ in steps], [by for _, by in steps], kinds, 1e3)
    below.set_xlabel(f"milliseconds, all blocks together, {rows[0]['name']}")
    below.set_xlim(right=1.05e3 * max((sum(by.values()) for _, by in steps), default=1e-3))
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    save(figure, path)


def _largest(points: list[dict], strategy: str) -> list[tuple[str, dict[str, float]]]:
    """Steps of the program and their seconds by kind, those that take longest."""
    by_step: dict[str, dict[str, float]] = {}
    for point in points:
        if point["strategy"] == strategy:
            by_step.setdefault(point["step"], {})[point["kind"]] = point["seconds"]
    return sorted(by_step.items(), key=lambda item: -sum(item[1].values()))[:14]


def _stacked(axis, names: list[str], parts: list[dict[str, float]], kinds: list[str], scale: float) -> None:
    left = [0.0] * len(names)
    for kind in kinds:
        widths = [one.get(kind, 0.0) * scale for one in parts]
        axis.barh(range(len(names)), widths, left=left, color=COLOURS.get(kind, OTHER), label=kind, height=0.62)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def roofline(data: dict, path: Path) -> None:
    """Above: the roofline, a point for each step of the program that declares arithmetic. Below: the speed of those that
    only move memory, beside the roof."""
    points, roofs = data["points"], data["roofs"]
    counted = [point for point in points if point["flops"]]
    moving = [point for point in points if not point["flops"]][:16]
    figure, axes = new_figure([5.0, 1.0 + 0.22 * max(1, len(moving))], title(data))
    if figure is None or roofs is None or not points:
        return
    from matplotlib.ticker import LogLocator

    above, below = axes
    _draw_roofs(above, roofs, [point["flops"] / point["bytes"] for point in counted])
    names = list(dict.fromkeys(point["step"] for point in counted))
    for point in counted:
        above.plot(point["flops"] / point["bytes"], point["flops"] / point["seconds"] / 1e9, MARKS[names.index(point["step"]) %
                  len(MARKS)], color=COLOURS.get(point["kind"], OTHER), markersize=7, markeredgecolor="white", zorder=3)
    above.set_xlabel("declared operations per declared byte")
    above.set_ylabel("GFLOP/s")
    for kind in in_order(point["kind"] for point in counted):
        above.plot([], [], "o", color=COLOURS.get(kind, OTHER), label=kind)
    for number, name in enumerate(names):
        above.plot([], [], MARKS[number % len(MARKS)], color=OTHER, label=name)
    rates = [point["flops"] / point["seconds"] / 1e9 for point in counted]
    above.set_ylim(min([*rates, roofs["flops"] / 1e9]) / 2, 1.5 * roofs["flops"] / 1e9)
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter("")
    above.xaxis.set_major_formatter("{x:g}")
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    _draw_traffic(below, moving, roofs["memory"])
    save(figure, path)


def _draw_roofs(axis, roofs: dict, intensities: list[float]) -> None:
    peak = roofs["flops"]
    low, high = min([*intensities, peak / roofs["memory"]]) / 4, max([*intensities, 10.0]) * 3
    for name, style in (("memory", "-"), ("caches", "--")):
        ridge = max(low, peak / roofs[name])
        where = "memory" if name == "memory" else "the processor's caches"
        axis.plot([low, ridge, high], [min(peak, low * roofs[name]) / 1e9, peak / 1e9, peak / 1e9], style, color="black",
                  linewidth=1.2, label=f"{where}: {roofs[name] / 1e9:.0f} GB/s")
    axis.annotate(f"multiply-adds: {peak / 1e9:.0f} GFLOP/s", (high, peak / 1e9), fontsize=8, ha="right", xytext=(-4, 4),
                  textcoords="offset points")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(low, high)


def _draw_traffic(axis, points: list[dict], roof: float) -> None:
    for position, point in enumerate(points):
        axis.barh(position, point["bytes"] / point["seconds"] / 1e9, color=COLOURS.get(point["kind"], OTHER), height=0.6)
    axis.axvline(roof / 1e9, color="black", linewidth=1.2)
    axis.set_yticks(range(len(points)), [f"{point['step']} {point['kind']}" for point in points], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("GB/s of steps without arithmetic of note; line: memory")


def kernel_speeds(data: dict, path: Path) -> None:
    """One line a kernel and shape, one mark a library: share of the machine's measured limit."""
    rows = data["rows"]
    figure, axes = new_figure([1.2 + 0.24 * len(rows)], "kernels by shape; " + title(data))
    if figure is None or not rows:
        return
    axis = axes[0]
    marks = {"cllm": ("o", OURS), "numpy": ("s", "#009E73"), "torch": ("D", THEIRS)}
    for library, (mark, colour) in marks.items():
        points = [(row["share"][library], position) for position, row in enumerate(rows)
                  if row["share"].get(library) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), mark, color=colour, label=library, markersize=6, alpha=0.85)
    axis.set_yticks(range(len(rows)), [f"{row['kernel']} {'×'.join(map(str, row['shape']))}" for row in rows],
                    fontsize=8)
    axis.set_xlim(left=0)
    axis.set_xlabel("share of the machine's limit: multiply-adds for products and attention,\n"
                    "moving as many bytes for the others")
    axis.set_ylim(len(rows) - 0.4, -0.6)
    figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=3)
    save(figure, path)
