"""Which picture shows a report."""

from pathlib import Path

from cllm.comparison.curve import draw_curve
from cllm.comparison.experiment import points_of, setting_name
from cllm.comparison.files import place_for
from cllm.comparison.picture import caption_of_all, check_picture, draw
from cllm.comparison.series import memory_against_time
from cllm.comparison.sweeps import draw_sweep


def draw_report(report: dict, path: Path) -> None:
    """Draw a report as PNG or SVG, whole or not at all: memory against time where the planner's curve or peers are in it,
    the course of each strategy where something was swept, else bars.

    Raises
    ------
    DataError
        When it cannot be drawn or written.
    """
    check_picture(path)
    points = points_of(report)
    with place_for(path) as place:
        if any(point["curve"] or point["peers"] for point in points):
            panels = [(setting_name(point["setting"]), memory_against_time(point)) for point in points]
            draw_curve(panels, place, caption_of_all(points))
        elif "points" in report:
            draw_sweep(points, place, caption_of_all(points))
        else:
            draw(report, place)
