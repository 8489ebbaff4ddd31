"""Elements of a page, escaped, and the frame of a picture: two axes with marks."""

from dataclasses import dataclass
from html import escape as _escape

from cllm.comparison.axes import Linear, Log

LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 46  # room around the axes for their labels, in units of the picture


def escape(text) -> str:
    """The text, safe inside an element and inside an attribute."""
    return _escape(str(text), quote=True)


def element(tag: str, *inside: str, **attributes) -> str:
    """An element: `inside` is markup already, attributes are escaped; ``class_`` is class, ``_`` in names is ``-``."""
    pairs = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items()
                    if value is not None)
    return f"<{tag}{pairs}>{''.join(inside)}</{tag}>"


def text(x: float, y: float, words, **attributes) -> str:
    """Words in a picture."""
    return element("text", escape(words), x=number(x), y=number(y), **attributes)


def number(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def megabytes(nbytes: float | None) -> str:
    """Bytes in words, in MB of 10^6 where they are many."""
    if nbytes is None:
        return "–"
    if nbytes < 1000:
        return f"{nbytes:.0f} bytes"
    value = nbytes / 1e6
    return f"{value:,.0f} MB" if value >= 1000 else f"{value:.1f} MB" if value >= 10 else f"{value:.3g} MB"


def seconds(value: float | None) -> str:
    """A time in words."""
    if value is None:
        return "–"
    return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value:.3f} s"


@dataclass(frozen=True, slots=True)
class Frame:
    """The room of a picture, `width` by `height`, and its axes."""

    width: float
    height: float
    across: Linear | Log
    up: Linear | Log

    @property
    def inner_width(self) -> float:
        """Length of the x axis."""
        return self.width - LEFT - RIGHT

    @property
    def inner_height(self) -> float:
        """Length of the y axis."""
        return self.height - TOP - BOTTOM

    def x(self, value: float) -> float:
        """Where a value stands on the x axis."""
        return LEFT + self.inner_width * self.across.share(value)

    def y(self, value: float) -> float:
        """Where a value stands on the y axis."""
        return TOP + self.inner_height * (1 - self.up.share(value))

    def y_axis(self, marks: list[float], name: str) -> str:
        """Lines across, their numbers, and the axis's name."""
        lines = "".join(element("line", class_="grid", x1=LEFT, x2=number(self.width - RIGHT), y1=number(self.y(m)),
                                y2=number(self.y(m))) for m in marks)
        labels = "".join(text(LEFT - 6, self.y(m) + 4, f"{m:,.4g}", text_anchor="end") for m in marks)
        middle = number(TOP + self.inner_height / 2)
        return lines + labels + element("text", escape(name), transform=f"translate(13 {middle}) rotate(-90)",
                                        text_anchor="middle", class_="axis")

    def x_axis(self, marks: list[tuple[float, str]], name: str) -> str:
        """Numbers or words below, and the axis's name."""
        base = TOP + self.inner_height
        line = element("line", class_="base", x1=LEFT, x2=number(self.width - RIGHT), y1=number(base), y2=number(base))
        labels = "".join(text(self.x(m), base + 17, words, text_anchor="middle") for m, words in marks)
        return line + labels + text(LEFT + self.inner_width / 2, base + 37, name, text_anchor="middle", class_="axis")

    def picture(self, label: str, *inside: str, role: str = "img", class_: str | None = None) -> str:
        """The whole picture; `label` is its title, and what a screen reader says."""
        return element("svg", element("title", escape(label)), *inside, role=role, aria_label=label, class_=class_,
                       viewBox=f"0 0 {number(self.width)} {number(self.height)}")
