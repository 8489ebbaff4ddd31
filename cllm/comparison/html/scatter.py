"""Memory against time: every strategy as predicted and as measured, the planner's curve, and peers."""

from cllm.comparison.axes import Linear, Log
from cllm.comparison.html.svg import LEFT, RIGHT, TOP, Frame, element, escape, megabytes, number, seconds, text
from cllm.comparison.labels import place
from cllm.comparison.series import MEMORY, SECONDS, Point, Series, label_of, memory_against_time, pairs_of, strokes_of

SIZES = {"on-wide": (860, 440), "on-narrow": (400, 420)}  # by the class that shows one of them, as the window is wide
LETTER, LINE = 6.4, 14  # of a label: width of a letter, about, and height
CURVE = "curve"


def figure(report: dict) -> str:
    """The picture with its legend, or a sentence where nothing was measured."""
    panel = memory_against_time(report)
    if not panel:
        return element("p", "Nothing was measured.")
    pictures = (_picture(panel, *size, shown) for shown, size in SIZES.items())
    legend = "".join(element("li", _sample(series), " ", escape(series.title)) for series in panel)
    return element("figure", *pictures, element("ul", legend, class_="legend"),
                   element("figcaption", "Dotted: from what was predicted to what was measured of the same. Measured memory is "
                           "what the process's peak lies above what it had before the model was made. Seconds are of whole "
                           "steps, with the optimizer, on a logarithmic axis. Tab goes from point to point."))


def _picture(panel: list[Series], width: float, height: float, shown: str) -> str:
    points = [point for series in panel for point in series.points]
    across = Linear.around([p.nbytes / 1e6 for p in points])
    up = Log.around([s for p in points for s in (p.low or p.seconds, p.high or p.seconds)])
    frame = Frame(width, height, across, up)
    inside = [frame.y_axis(up.marks(), SECONDS), frame.x_axis([(m, f"{m:,.4g}") for m in across.marks()], MEMORY)]
    inside += [_line(frame, series) for series in panel if series.kind == CURVE]
    inside += [element("line", class_=f"shift {series.kind}", **_ends(frame, predicted, measured))
               for series, predicted, measured in pairs_of(panel)]
    inside += [_mark(frame, series, point) for series in panel if series.kind != CURVE for point in series.points]
    inside += _names(frame, panel)
    return frame.picture("Memory of the training against the time of a step", *inside, role="group", class_=shown)


def _at(frame: Frame, point: Point) -> tuple[float, float]:
    return frame.x(point.nbytes / 1e6), frame.y(point.seconds)


def _line(frame: Frame, series: Series) -> str:
    (x, y), *others = (_at(frame, point) for point in series.points)
    path = f"M{number(x)} {number(y)}" + "".join(f"H{number(x)}V{number(y)}" for x, y in others)
    return element("path", element("title", escape(series.title)), d=path, class_="curve")


def _ends(frame: Frame, one: Point, other: Point) -> dict[str, str]:
    (x1, y1), (x2, y2) = _at(frame, one), _at(frame, other)
    return {"x1": number(x1), "y1": number(y1), "x2": number(x2), "y2": number(y2)}


def _mark(frame: Frame, series: Series, point: Point) -> str:
    x, y = _at(frame, point)
    what = "measured" if series.measured else "predicted"
    words = f"{point.name}, {what}: {megabytes(point.nbytes)}, {seconds(point.seconds)}"
    inside = [element("title", escape(words))]
    if point.low is not None:
        words += f" ({seconds(point.low)} to {seconds(point.high)})"
        low, high = number(frame.y(point.low)), number(frame.y(point.high))
        inside = [element("title", escape(words)),
                  element("line", class_=f"interval {series.kind}", x1=number(x), x2=number(x), y1=low, y2=high)]
    return element("g", *inside, _shape(series, x, y), tabindex="0", role="img", aria_label=words, class_="point")


def _shape(series: Series, x: float, y: float) -> str:
    look = f"{series.kind} {'measured' if series.measured else 'predicted'}"
    if series.kind == "strategies":
        return element("circle", cx=number(x), cy=number(y), r="5.5", class_=look)
    turned = f"rotate(45 {number(x)} {number(y)})" if series.kind == "budgets" else None
    return element("rect", x=number(x - 4.5), y=number(y - 4.5), width="9", height="9", class_=look, transform=turned)


def _sample(series: Series) -> str:
    inside = element("path", d="M0 8H18", class_="curve") if series.kind == CURVE else _shape(series, 9, 8)
    return element("svg", inside, viewBox="0 0 18 16", class_="sample", aria_hidden="true")


def _names(frame: Frame, panel: list[Series]) -> list[str]:
    """Names beside the measured points where there is room; the others are told by hovering and by Tab."""
    marked = [(series, point) for series in panel if series.kind != CURVE for point in series.points]
    named = [(*_at(frame, point), label_of(point)) for series, point in marked if series.measured]
    lines = [(*_at(frame, one), *_at(frame, other)) for one, other in strokes_of(panel)]
    room = (LEFT, TOP, frame.width - RIGHT, TOP + frame.inner_height)
    made = []
    for label in place(named, [_at(frame, point) for _, point in marked], lines, room, LETTER, LINE):
        left, above, right, below = label.box
        if label.far:
            made.append(element("line", class_="lead", x1=number(label.x), y1=number(label.y),
                                x2=number(min(max(label.x, left), right)), y2=number(min(max(label.y, above), below))))
        anchor, x = label.anchor
        made.append(text(x, below - 4, label.name, text_anchor=anchor, class_="name"))
    return made
