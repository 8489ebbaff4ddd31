"""Pictures of memory: over one step, and against the time of a step."""

from pathlib import Path

from words import title

from cllm.comparison.curve import draw_curve
from cllm.comparison.series import BUDGET, Point, Series, front_of, planned_curve, strategies_and_budgets
from pictures.figure import BUFFERS, SERIES, THEIRS, in_order, matplotlib_is_there, save
from pictures.figure import figure as new_figure

SEEN = 0.002  # share of a step that a kind of operation takes, to have a row


def memory_against_time(results: list[dict], path: Path) -> None:
    """Growth of the process against the time of a step, a panel for each result of `compare.py`; a line joins, for cllm and
    for PyTorch, those that no other of the same side beats in both."""
    if matplotlib_is_there() and any(data["rows"] for data in results):
        draw_curve([(title(data), _contestants(data["rows"])) for data in results], path,
                   memory="growth of the process over the model, MB (10⁶ bytes)")


def _contestants(rows: list[dict]) -> list[Series]:
    ours, theirs = ([_measured(row, row["growth_bytes"]) for row in rows if row["growth_bytes"] is not None
                     and row["name"].startswith("torch") == torch] for torch in (False, True))
    made = [*strategies_and_budgets(ours, True),
            Series("PyTorch, measured: median, and least to most", "peers", tuple(theirs), True),
            Series("cllm's that no other beats in both", "front", tuple(front_of(ours))),
            Series("PyTorch's that no other beats in both", "peers' front", tuple(front_of(theirs)))]
    return [series for series in made if series.points]


def _measured(row: dict, nbytes: int) -> Point:
    return Point(nbytes, row["seconds"]["median"], row["name"], row["seconds"]["min"], row["seconds"]["max"])


def timelines(data: dict, path: Path) -> None:
    """What is alive within one step, as predicted, a panel a strategy with axes shared; over it, as lines, the arena's own
    record and the process as the system saw it; below it, when each kind of operation runs."""
    rows = [row for row in data["rows"] if row["name"] in data["drawn"]]
    kinds = in_order(kind for row in rows for kind, spans in spans_of(row).items() if sum(n for _, n in spans) > SEEN)
    figure, axes = new_figure([3.2, 0.35 + 0.14 * len(kinds)] * len(rows), title(data), sharex=True)
    if figure is None or not rows:
        return
    top = max(max([row["total_bytes"] / 1e6, *(size for _, size in _samples(row))]) for row in rows)
    for axis, strip, row in zip(axes[::2], axes[1::2], rows, strict=True):
        _draw_timeline(axis, row)
        draw_operations(strip, row, kinds)
        axis.set_title(f"{row['name']}: one step of {min(row['step_seconds']):.3g} s", fontsize=10)
        axis.set_ylabel("MB (10⁶ bytes)")
        axis.set_ylim(0, 1.08 * top)
        strip.set_xlabel("share of the step")
        strip.tick_params(labelbottom=True)
        axis.set_xlim(0, 1)
    _timeline_legend(figure, rows)
    save(figure, path)


def _draw_timeline(axis, row: dict) -> None:
    timeline = row["timeline"]
    fixed = (row["total_bytes"] - row["arena_bytes"]) / 1e6
    edges = [0.0, *timeline["ends"]]
    axis.axhspan(0, fixed, color="#e4e4e4", linewidth=0)
    below = [fixed] * len(timeline["ends"])
    for kind in _kinds([row]):
        above = [low + nbytes / 1e6 for low, nbytes in zip(below, timeline["by_kind"][kind], strict=True)]
        axis.stairs(above, edges, baseline=below, fill=True, color=BUFFERS[kind], alpha=0.75, linewidth=0)
        below = above
    record = fixed + row["high_water_bytes"] / 1e6
    if samples := _samples(row):
        axis.plot(*zip(*samples, strict=True), color=THEIRS, linewidth=3, alpha=0.7, zorder=3)
    axis.axhline(record, color="black", linestyle="--", linewidth=1.2, zorder=4)
    axis.annotate(f"{record:.1f} MB", (0.985, record), ha="right", fontsize=9, xytext=(0, 4), textcoords="offset points")


def draw_operations(axis, row: dict, kinds: list[str]) -> None:
    """A row for each kind, black while an operation of it runs."""
    spans = spans_of(row)
    for position, kind in enumerate(kinds):
        axis.broken_barh(spans.get(kind, []), (position - 0.4, 0.8), color="#333333", linewidth=0)
    axis.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axis.set_ylim(len(kinds) - 0.4, -0.6)
    axis.grid(visible=False)


def spans_of(row: dict) -> dict[str, list[tuple[float, float]]]:
    """When each kind of operation runs: where it begins and how long it is, as shares of the step."""
    timeline, spans = row["timeline"], {}
    for start, end, name in zip([0.0, *timeline["ends"]], timeline["ends"], timeline["operations"], strict=False):
        spans.setdefault(name.split()[0], []).append((start, end - start))
    return spans


def _kinds(rows: list[dict]) -> list[str]:
    """Kinds of buffers that are ever alive; a result of before a kind was there does not name it."""
    return [kind for kind in BUFFERS if any(any(row["timeline"]["by_kind"].get(kind, ())) for row in rows)]


def _samples(row: dict) -> list[tuple[float, float]]:
    """Of the first step: its share that had passed, and MB of the process over its start."""
    first, start = row["step_seconds"][0], row["rss_start_bytes"] or 0
    return [(moment / first, (nbytes - start) / 1e6) for moment, nbytes in row["samples"] if moment <= first]


def _timeline_legend(figure, rows: list[dict]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="highest byte that the arena recorded")]
    if any(_samples(row) for row in rows):
        handles.append(Line2D([], [], color=THEIRS, linewidth=3, alpha=0.7,
                              label="the process, less its start: flat, since all is allocated before the step"))
    handles.append(Patch(color="#e4e4e4", label="parameters, gradients, optimizer, batch"))
    handles += [Patch(color=BUFFERS[kind], alpha=0.75, label=f"arena, predicted: {kind}") for kind in _kinds(rows)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)


def curve(data: dict, path: Path) -> None:
    """Memory against time of `predictions.py`: every strategy and every budget as predicted and as measured, and the
    planner's whole curve."""
    rows = [{**row, "name": f"{BUDGET}{row['total_bytes'] / 1e6:.0f}MB"} if row["is_budget"] else row for row in data["rows"]]
    if not matplotlib_is_there() or not rows:
        return
    whole = planned_curve(Point(point["total_bytes"], point["seconds"]) for point in data["curve"] or [])
    predicted = [Point(row["total_bytes"], row["predicted_seconds"], row["name"]) for row in rows]
    measured = [_measured(row, row["total_bytes"]) for row in rows]
    made = [whole, *strategies_and_budgets(predicted, False), *strategies_and_budgets(measured, True)]
    draw_curve([(title(data), [series for series in made if series.points])], path)


def growth(data: dict, path: Path) -> None:
    """How arena and time grow, with the layers and then with the batch."""
    rows = data["rows"]
    base = data["base"]
    time = "" if data["time"] is None else f", T {data['time']}"
    if data.get("family", "gpt") == "gpt":  # results of before are all of it
        sizes = f"thin layers, C {base['d_model']}, H {base['n_heads']}, F {base['d_ff']}, V {base['vocab_size']}"
    else:
        sizes = data["model"]
    figure, axes = new_figure([2.9] * 4, f"{sizes}{time}; {title(data)}")
    if figure is None or not rows:
        return
    from matplotlib.ticker import LogLocator

    panels = [(key, *quantity) for key in ("layers", "batch") for quantity in (
        ("arena, MB (10⁶ bytes)", lambda row: row["arena_bytes"] / 1e6),
        ("milliseconds a step", lambda row: row["seconds"]["median"] * 1e3))]
    others = {key: f"batch {_only(rows, 'depth', 'batch')}" if key == "layers" else f"{_only(rows, 'batch', 'layers')} layers"
              for key in ("layers", "batch")}
    for axis, (key, quantity, what) in zip(axes, panels, strict=True):
        mine = [row for row in rows if row["sweep"] == {"layers": "depth", "batch": "batch"}[key]]
        lengths = sorted({row[key] for row in mine})
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
        axis.set_xlabel(f"{key}, {others[key]}")
        axis.set_ylabel(quantity)
        if mine:
            axis.legend(fontsize=9, frameon=False)
    save(figure, path)


def _only(rows: list[dict], sweep: str, key: str) -> str:
    return ", ".join(str(n) for n in dict.fromkeys(row[key] for row in rows if row["sweep"] == sweep))
