"""A sweep: time and arena of each strategy from point to point."""

from cllm.comparison.axes import Linear, round_marks
from cllm.comparison.html.svg import Frame, element, escape, number
from cllm.comparison.sweeps import QUANTITIES, Line, Quantity, lines_of, places_of, quantities_of

WIDTH, HEIGHT = 400, 280
COLOURS = 6  # of the style sheet


def figures(points: list[dict]) -> str:
    """A picture for each quantity, and one legend."""
    names = [line.strategy for line in lines_of(points, QUANTITIES[0])]
    legend = "".join(element("li", _sample(number), " ", escape(name)) for number, name in enumerate(names))
    made = "".join(element("figure", element("h4", escape(quantity.title)), _picture(points, quantity))
                   for quantity in quantities_of(points))
    return element("ul", legend, element("li", "solid: measured; dashed: predicted"), class_="legend") \
        + element("div", made, class_="side-by-side")


def _picture(points: list[dict], quantity: Quantity) -> str:
    places, labels, name = places_of(points)
    lines = lines_of(points, quantity)
    values = [v for line in lines for v in (*line.measured, *line.predicted) if v is not None]
    marks = round_marks(max(values, default=0))
    frame = Frame(WIDTH, HEIGHT, Linear(0, max([*places, 1]) * 1.04), Linear(0, marks[-1]))
    short = [(place, label) for place, label in zip(places, labels, strict=True)] if sum(map(len, labels)) < 60 else \
        [(place, str(position)) for position, place in enumerate(places)]
    inside = [frame.y_axis(marks, quantity.unit), frame.x_axis(short, name)]
    for colour, line in enumerate(lines):
        inside.append(_line(frame, places, line.predicted, f"c{colour % COLOURS} dashed", f"{line.strategy}, predicted"))
        inside.append(_line(frame, places, line.measured, f"c{colour % COLOURS}", f"{line.strategy}, measured"))
        inside += _marks(frame, places, labels, line, colour, quantity)
    return frame.picture(f"{quantity.title} from point to point of the sweep", *inside, role="group")


def _line(frame: Frame, places: list[float], values: tuple[float | None, ...], look: str, words: str) -> str:
    there = [(x, y) for x, y in sorted(zip(places, values, strict=True), key=lambda pair: pair[0]) if y is not None]
    path = "L".join(f"{number(frame.x(x))} {number(frame.y(y))}" for x, y in there)
    return element("path", element("title", escape(words)), d="M" + path, class_=f"course {look}") if there else ""


def _marks(frame: Frame, places: list[float], labels: list[str], line: Line, colour: int, quantity: Quantity) -> list[str]:
    made = []
    for x, label, y in zip(places, labels, line.measured, strict=True):
        if y is not None:
            words = f"{line.strategy}, {label}: {y:,.4g} {quantity.unit}"
            circle = element("circle", cx=number(frame.x(x)), cy=number(frame.y(y)), r="4.5", class_=f"dot c{colour % COLOURS}")
            made.append(element("g", element("title", escape(words)), circle, tabindex="0", role="img", aria_label=words,
                                class_="point"))
    return made


def _sample(colour: int) -> str:
    return element("svg", element("path", d="M0 8H18", class_=f"course c{colour % COLOURS}"), viewBox="0 0 18 16",
                   class_="sample", aria_hidden="true")
