"""Axes and names of points: what both kinds of picture ask for."""
import random

import pytest
from longer import examples

from cllm.comparison.axes import Linear, Log, round_marks
from cllm.comparison.labels import _crosses, place
from cllm.comparison.series import Point, Series, front_of, label_of, pairs_of, strokes_of

ROOM = (0, 0, 400, 300)


@pytest.mark.parametrize("top, marks", [(0, [0.0, 1.0]), (1.0, 6), (0.93, 6), (420, 6), (3e-3, 4)])
def test_round_marks(top, marks):
    found = round_marks(top)
    assert found == marks if isinstance(marks, list) else found[-1] >= top and 4 <= len(found) <= 7
    assert found[0] == 0.0


@pytest.mark.parametrize("low, high, marks", [
    (0.001, 20, [0.001, 0.01, 0.1, 1, 10]), (0.2, 40, [0.3, 1, 3, 10, 30]), (0.9, 11, [1, 2, 5, 10]),
    (1.3, 2.6, [1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6]), (0.5, 3.2, [0.5, 0.7, 1, 1.5, 2, 3])])
def test_a_logarithmic_axis_has_few_round_marks_inside(low, high, marks):
    assert Log(low, high).marks() == pytest.approx(marks)


def test_shares_of_an_axis():
    assert Log(1, 100).share(10) == pytest.approx(0.5) and Linear(10, 30).share(15) == 0.25
    for axis in (*(Log.around(some) for some in ([0.1, 8.0], [5])),
                 *(Linear.around(some) for some in ([300, 700], [1, 700], [5]))):
        assert axis.low < axis.high and all(axis.low <= mark <= axis.high for mark in axis.marks())
    assert Linear.around([1, 700]).low == 0 and Linear.around([300, 700]).low > 0
    outlier, others = 60.0, [1.0, 1.2, 1.5]
    axis = Log.around([outlier, *others])
    assert axis.share(1.5) - axis.share(1.0) > 0.08, "the slowest does not press the others together"


def test_names_lie_on_nothing():
    marks = [(100 + 9 * n, 100 + 5 * (n % 3)) for n in range(12)]
    found = place([(x, y, f"strategy:{n}") for n, (x, y) in enumerate(marks)], marks, [], ROOM, 6, 12)
    assert len(found) == 12
    boxes = [one.box for one in found] + [(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    for number, one in enumerate(boxes[:12]):
        assert ROOM[0] <= one[0] and one[2] <= ROOM[2] and ROOM[1] <= one[1] and one[3] <= ROOM[3]
        assert not any(one[0] < b[2] and b[0] < one[2] and one[1] < b[3] and b[1] < one[3] for b in boxes[number + 1:])
    assert {one.far for one in found} == {True, False}


def test_a_name_keeps_off_lines_where_it_can_and_says_which_end_is_near():
    right, = place([(200, 150, "name")], [(200, 150)], [], ROOM, 6, 12)
    assert right.anchor[0] == "start" and right.box[0] > 200 and not right.far
    left, = place([(200, 150, "name")], [(200, 150)], [(200, 150, 300, 150)], ROOM, 6, 12)
    assert left.anchor[0] == "end" and left.box[2] < 200
    edge, = place([(395, 150, "name")], [(395, 150)], [], ROOM, 6, 12)
    assert edge.anchor[0] == "end"


def test_a_line_to_a_name_goes_through_no_other_name():
    drawn = random.Random(1)
    lines = 0
    for _ in range(examples(150, 300)):
        points = [(drawn.uniform(150, 330), drawn.uniform(120, 200), "name" * drawn.randint(1, 3) + str(n)) for n in range(7)]
        points.append((*points[0][:2], "twin"))  # two marks in one place
        found = place(points, [point[:2] for point in points], [], ROOM, 5, 10)
        for one in (one for one in found if one.far):
            lines += 1
            assert not any(_crosses(one.leader, other.box) for other in found if other is not one)
    assert lines > 20


def test_a_name_without_room_is_left_out():
    assert place([(5, 5, "x" * 99)], [(5, 5)], [], ROOM, 6, 12) == []


def test_what_belongs_together_and_what_nobody_beats():
    predicted, measured = Point(10, 1.0, "cache"), Point(12, 1.1, "cache", 1.0, 1.3)
    panel = [Series("", "strategies", (predicted, Point(1, 1, "sqrt"))), Series("", "strategies", (measured,), True),
             Series("", "budgets", (Point(3, 3, "cache"),), True)]
    assert pairs_of(panel) == [(panel[0], predicted, measured)]
    points = [Point(5, 2.0), Point(1, 4.0), Point(3, 4.0), Point(6, 2.5), Point(9, 1.0)]
    assert front_of(points) == [points[1], points[0], points[4]]
    assert label_of(Point(1, 1, "budget:450MB")) == "450MB" and label_of(measured) == "cache"


def test_lines_are_known_where_they_lie():
    panel = [Series("", "curve", (Point(1, 4.0), Point(3, 2.0))), Series("", "peers", (Point(5, 5, "x", 4, 6),), True)]
    assert [(one.nbytes, one.seconds, other.nbytes, other.seconds) for one, other in strokes_of(panel)] == [
        (1, 4.0, 3, 4.0), (3, 4.0, 3, 2.0), (5, 4, 5, 6)]


def crowded():
    """Many points near to each other, and one that is slow."""
    measured = [Point(3e8 + 1e6 * n, 1.0 + 0.01 * (n % 4), f"strategy:{n}", 0.9, 1.2) for n in range(14)] + [
        Point(2e8, 40.0, "recompute", 30.0, 60.0)]
    predicted = [Point(p.nbytes - 5e7, 1.05 * p.seconds, p.name) for p in measured]
    return [Series("predicted", "strategies", tuple(predicted)), Series("measured", "strategies", tuple(measured), True)]


def test_names_in_the_drawn_picture_lie_on_nothing():
    Text = pytest.importorskip("matplotlib.text").Text
    from cllm.comparison.curve import curve_figure

    panel = crowded()
    figure = curve_figure([("first", panel), ("second", panel)], "workload")
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the lines that lead to points
        marks = [axis.transData.transform((p.nbytes / 1e6, p.seconds)) for series in panel for p in series.points]
        assert len(boxes) >= 14 and axis.get_yscale() == "log"
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[number + 1:])
            assert not any(box.contains(*mark) for mark in marks)
