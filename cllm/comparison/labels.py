"""Where the names of points stand in a picture: beside their points, on nothing else that is there.

Both kinds of picture, SVG and matplotlib's, ask here, each in units of its own; y grows downwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

HALF_MARK = 6.0   # from the middle of a point's mark to its edge, with some air
GAP = 3.0         # between a mark and its name
DISTANCES = range(0, 150, 8)  # how far from its point a name may be pushed
FAR = 20.0        # a line that goes through another's name counts as ten lines under a name
# Ways to go from a point: sideways first, then slantwise, then up and down.
WAYS = ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1))

Box = tuple[float, float, float, float]  # left, top, right, bottom
Stretch = tuple[float, float, float, float]  # x1, y1, x2, y2 of a line


@dataclass(frozen=True, slots=True)
class Label:
    """A name's place: the box of its letters, and whether it is so far from its point that a line should lead there."""

    name: str
    x: float
    y: float
    box: Box
    far: bool

    @property
    def anchor(self) -> tuple[str, float]:
        """Which end of the letters is nearest to the point ("start", "middle" or "end"), and where it stands."""
        left, _, right, _ = self.box
        return ("start", left) if left >= self.x else ("end", right) if right <= self.x else ("middle", (left + right) / 2)

    @property
    def leader(self) -> Stretch:
        """The line from the point to the letters."""
        return self.x, self.y, self.anchor[1], (self.box[1] + self.box[3]) / 2


def place(points: Sequence[tuple[float, float, str]], marks: Sequence[tuple[float, float]], lines: Sequence[Stretch],
          room: Box, letter: float, height: float) -> list[Label]:
    """Places for the names of `points`, which are among `marks`; those for which there is no room are left out.

    Parameters
    ----------
    points : sequence of (x, y, name)
    marks : sequence of (x, y)
        Everything that is drawn as a mark: no name lies on one.
    lines : sequence of (x1, y1, x2, y2)
        What names lie on only where nothing else is free.
    room : (left, top, right, bottom)
        No name reaches beyond.
    letter, height : float
        Width of a letter and height of a line of text.
    """
    taken = [(x - HALF_MARK, y - HALF_MARK, x + HALF_MARK, y + HALF_MARK) for x, y in marks]
    made: list[Label] = []
    for x, y, name in sorted(points, key=lambda point: _crowd(point, marks), reverse=True):
        free = [(2 * sum(_crosses(line, box) for line in lines) + FAR * _through_names(label, made) + distance / 8,
                 distance, label) for distance, box in _boxes(x, y, letter * len(name), height)
                if _inside(box, room) and not any(_overlap(box, other) for other in taken)
                for label in [Label(name, x, y, box, far=distance > 0)]]
        if free:
            made.append(min(free, key=lambda one: one[:2])[2])
            taken.append(made[-1].box)
    return made


def _through_names(label: Label, others: Sequence[Label]) -> int:
    """How often a line from a point to its name would go through another name."""
    return sum(_crosses(label.leader, other.box) for other in others if label.far) + sum(
        _crosses(other.leader, label.box) for other in others if other.far)


def _crowd(point: tuple[float, float, str], marks: Sequence[tuple[float, float]]) -> int:
    """How many marks are near: who has least room chooses first."""
    return sum(abs(x - point[0]) < 80 and abs(y - point[1]) < 40 for x, y in marks)


def _boxes(x: float, y: float, width: float, height: float):
    """Boxes about a point, nearest first, each with how far it was pushed."""
    for distance in DISTANCES:
        for across, down in WAYS:
            sideways = distance + (0 if down else HALF_MARK + GAP) + width / 2
            middle, centre = y + down * (HALF_MARK + height / 2 + distance), x + across * sideways
            yield distance, (centre - width / 2, middle - height / 2, centre + width / 2, middle + height / 2)


def _inside(box: Box, room: Box) -> bool:
    return room[0] <= box[0] and room[1] <= box[1] and box[2] <= room[2] and box[3] <= room[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _crosses(line: Stretch, box: Box) -> bool:
    """Whether a line meets a box: what is left of the line inside each side in turn (Liang and Barsky 1984)."""
    x, y, right, down = line[0], line[1], line[2] - line[0], line[3] - line[1]
    begin, end = 0.0, 1.0
    for slope, room in ((-right, x - box[0]), (right, box[2] - x), (-down, y - box[1]), (down, box[3] - y)):
        if slope == 0:
            if room < 0:
                return False
        elif slope < 0:
            begin = max(begin, room / slope)
        else:
            end = min(end, room / slope)
    return begin <= end
