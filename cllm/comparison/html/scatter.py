"""Memory against time: every strategy as predicted and as measured, the planner's curve, and peers."""

from cllm.comparison.html.svg import Frame, element, escape, megabytes, number, round_marks, seconds, text
from cllm.comparison.series import Point, Series, memory_against_time

WIDTH, HEIGHT = 860, 440
LETTER = 6.6  # width of a letter of the labels, about
NAMED = ("measured", "peers")


def figure(report: dict) -> str:
    """The picture with its legend, or a sentence where nothing was measured."""
    panel = memory_against_time(report)
    if not panel:
        return element("p", "Nothing was measured.")
    points = [point for series in panel for point in series.points]
    marks = round_marks(max(p.nbytes for p in points) / 1e6, 8), round_marks(max(p.seconds for p in points))
    frame = Frame(WIDTH, HEIGHT, marks[0][-1] * 1e6, marks[1][-1])
    inside = [frame.y_axis(marks[1], "seconds a step"),
              frame.x_axis([(m * 1e6, f"{m:,.4g}") for m in marks[0]], "memory of the training, MB (10⁶ bytes)")]
    inside += [_line(frame, series) for series in panel if series.kind == "curve"]
    inside += [_shift(frame, panel)]
    inside += [_mark(frame, series, point) for series in panel if series.kind != "curve" for point in series.points]
    inside += _names(frame, panel)
    legend = "".join(element("li", _sample(series.kind), " ", escape(series.title)) for series in panel)
    return element("figure", frame.picture("Memory of the training against the time of a step", *inside, role="group"),
                   element("ul", legend, class_="legend"),
                   element("figcaption", "Measured memory is what the process's peak lies above what it had before the model "
                           "was made. Seconds are of whole steps, with the optimizer. Tab goes from point to point."))


def _line(frame: Frame, series: Series) -> str:
    first, *others = series.points
    path = f"M{number(frame.x(first.nbytes))} {number(frame.y(first.seconds))}"
    path += "".join(f"H{number(frame.x(p.nbytes))}V{number(frame.y(p.seconds))}" for p in others)
    return element("path", element("title", escape(series.title)), d=path, class_="curve")


def _shift(frame: Frame, panel: list[Series]) -> str:
    """Thin lines from what was predicted to what was measured."""
    places = {series.kind: {point.name: point for point in series.points} for series in panel if series.kind != "peers"}
    lines = []
    for name, measured in places.get("measured", {}).items():
        predicted = places["predicted"][name]
        lines.append(element("line", class_="shift",
                             x1=number(frame.x(predicted.nbytes)), y1=number(frame.y(predicted.seconds)),
                             x2=number(frame.x(measured.nbytes)), y2=number(frame.y(measured.seconds))))
    return "".join(lines)


def _mark(frame: Frame, series: Series, point: Point) -> str:
    x, y = frame.x(point.nbytes), frame.y(point.seconds)
    words = f"{point.name}, {'predicted' if series.kind == 'predicted' else 'measured'}: {megabytes(point.nbytes)}, " \
            f"{seconds(point.seconds)}"
    return element("g", element("title", escape(words)), _shape(series.kind, x, y), tabindex="0", role="img", aria_label=words,
                   class_="point")


def _shape(kind: str, x: float, y: float) -> str:
    if kind == "peers":
        return element("rect", x=number(x - 5), y=number(y - 5), width="10", height="10", class_="peers")
    return element("circle", cx=number(x), cy=number(y), r="5.5", class_=kind)


def _sample(kind: str) -> str:
    inside = element("path", d="M0 8H18", class_="curve") if kind == "curve" else _shape(kind, 9, 8)
    return element("svg", inside, viewBox="0 0 18 16", class_="sample", aria_hidden="true")


def _names(frame: Frame, panel: list[Series]) -> list[str]:
    """Names beside their points where there is room; the others are told by hovering and by Tab."""
    points = [(series.kind, point) for series in panel for point in series.points if series.kind != "curve"]
    taken = [(frame.x(p.nbytes) - 6, frame.y(p.seconds) - 6, frame.x(p.nbytes) + 6, frame.y(p.seconds) + 6) for _, p in points]
    made = []
    for kind, point in points:
        if kind not in NAMED:
            continue
        x, y, width = frame.x(point.nbytes), frame.y(point.seconds), LETTER * len(point.name)
        for anchor, left, base in (("start", x + 9, y + 4), ("end", x - 9 - width, y + 4), ("start", x + 6, y - 10),
                                   ("start", x + 6, y + 18), ("end", x - 6 - width, y - 10), ("end", x - 6 - width, y + 18)):
            box = (left, base - 11, left + width, base + 3)
            if 0 < left and box[2] < WIDTH and box[1] > 0 and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                made.append(text(left if anchor == "start" else left + width, base, point.name, text_anchor=anchor,
                                 class_="name"))
                break
    return made


def _overlap(one: tuple, other: tuple) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
