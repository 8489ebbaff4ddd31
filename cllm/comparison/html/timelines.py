"""Timelines side by side: bytes alive during each operation, stacked by kind of site, all to one scale."""

import json

from cllm.comparison.axes import Linear, round_marks
from cllm.comparison.description import KINDS
from cllm.comparison.html.svg import LEFT, RIGHT, TOP, Frame, element, escape, megabytes, number

WIDTH, HEIGHT = 400, 250
# Below the x axis, as wide as it is.
SLIDER = (f"margin: 2px {100 * RIGHT / WIDTH:.1f}% 0 {100 * LEFT / WIDTH:.1f}%; "
          f"width: {100 * (WIDTH - LEFT - RIGHT) / WIDTH:.1f}%")


def figures(report: dict, prefix: str) -> str:
    """A figure for each strategy that ran, and one legend; `prefix` keeps their ids apart from other points'."""
    rows = [row for row in report["rows"] if row["timeline"]]
    if not rows:
        return element("p", "Nothing was measured.")
    marks = round_marks(max(max(row["arena_bytes"], row["high_water_bytes"]) for row in rows) / 1e6)
    shown = [kind for kind in KINDS if any(kind in row["timeline"]["by_kind"] for row in rows)]
    legend = "".join(element("li", _sample(kind), " ", escape(kind)) for kind in shown)
    made = "".join(_figure(row, marks, f"{prefix}timeline-{position}") for position, row in enumerate(rows))
    return element("ul", legend, element("li", element("svg", element("path", d="M0 8H18", class_="water"), class_="sample",
                                                       viewBox="0 0 18 16", aria_hidden="true"),
                                         " highest byte that the arena recorded"), class_="legend") \
        + element("div", made, class_="side-by-side")


def _figure(row: dict, marks: list[float], name: str) -> str:
    timeline = row["timeline"]
    count = len(timeline["operations"])
    frame = Frame(WIDTH, HEIGHT, Linear(0, count), Linear(0, marks[-1]))
    peak = max(range(count), key=timeline["bytes"].__getitem__)
    label = (f"Timeline of {row['strategy']}: {count} operations, at most {megabytes(timeline['bytes'][peak])} alive, during "
             f"{timeline['operations'][peak]}; the arena recorded {megabytes(row['high_water_bytes'])}")
    inside = [frame.y_axis(marks, "MB (10⁶ bytes)"), *_layers(frame, timeline),
              _water(frame, row["high_water_bytes"]),
              frame.x_axis([(0, "0"), (count, str(count))], "operations of one micro-batch and the epilogue"),
              element("line", class_="cursor", x1="-9", x2="-9", y1=number(TOP), y2=number(TOP + frame.inner_height)),
              element("rect", class_="hit", x=number(frame.x(0)), y=number(TOP), width=number(frame.inner_width),
                      height=number(frame.inner_height))]
    walk = element("label", element("span", f"Operation of {escape(row['strategy'])}", class_="unseen"),
                   f'<input type="range" min="0" max="{count - 1}" value="{peak}" id="{escape(name)}" style="{SLIDER}" '
                   f'aria-valuetext="{escape(timeline["operations"][peak])}">')
    said = f"{timeline['operations'][peak]}: {megabytes(timeline['bytes'][peak])}, the most of all"
    return element("figure", element("h4", escape(row["strategy"])), frame.picture(label, *inside), walk,
                   element("output", escape(said), for_=name),
                   element("script", _data(timeline), type="application/json"), class_="timeline")


def _layers(frame: Frame, timeline: dict) -> list[str]:
    """One shape a kind, each from zero to the sum of its own and those below: the tallest first, the others over it."""
    below = [0] * len(timeline["operations"])
    layers = []
    for kind, nbytes in timeline["by_kind"].items():
        below = [a + b for a, b in zip(below, nbytes, strict=True)]
        layers.append(element("path", element("title", escape(kind)), d=_steps(frame, below), class_=f"kind {kind}"))
    return layers[::-1]


def _steps(frame: Frame, heights: list[int]) -> str:
    path, last = f"M{number(frame.x(0))} {number(frame.y(0))}", None
    for position, height in enumerate(heights):
        if height != last:
            path += f"H{number(frame.x(position))}V{number(frame.y(height / 1e6))}"
            last = height
    return path + f"H{number(frame.x(len(heights)))}V{number(frame.y(0))}Z"


def _water(frame: Frame, nbytes: int) -> str:
    y = frame.y(nbytes / 1e6)
    words = f"recorded: {megabytes(nbytes)}"
    return element("line", element("title", escape(words)), class_="water", x1=number(frame.x(0)),
                   x2=number(frame.x(frame.across.high)), y1=number(y), y2=number(y))


def _sample(kind: str) -> str:
    return element("svg", element("rect", width="16", height="16", class_=f"kind {kind}"), viewBox="0 0 16 16", class_="sample",
                   aria_hidden="true")


def _data(timeline: dict) -> str:
    """What the script tells of each operation. No end of a script element can stand in it."""
    data = {"operations": timeline["operations"], "bytes": timeline["bytes"], "by_kind": timeline["by_kind"]}
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
