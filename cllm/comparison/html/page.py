"""The whole page."""

from importlib.resources import files

from cllm.comparison.experiment import points_of, setting_name
from cllm.comparison.html import courses, grids, scatter, tables, timelines
from cllm.comparison.html.svg import element, escape
from cllm.comparison.picture import caption


def render(report: dict) -> str:
    """A report (see `experiment.report_of`) as one HTML page that loads nothing."""
    points = points_of(report)
    swept = "points" in report
    title = "cllm compare: " + (", ".join(report["sweep"]) if swept else caption(points[0]))
    sections = [_origin(report), _problems(report["problems"] + report.get("doubts", []))]
    if swept:
        sections.append(_section("sweep", "The sweep", courses.figures(points)))
    for number, point in enumerate(points):
        prefix = f"point-{number}-" if swept else ""
        if swept:
            sections.append(element("h2", escape(setting_name(point["setting"])), id=f"{prefix}head"))
        sections.append(element("p", escape(caption(point)), class_="note"))
        sections += _sections(point, prefix)
    sections.append(_section("machine", "The machine", tables.machine(report["machine"])))
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = ('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            + element("title", escape(title)) + element("style", style))
    body = element("header", element("h1", "cllm compare"), _contents(points, swept)) \
        + element("main", *sections) + element("script", script)
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


def _sections(point: dict, prefix: str) -> list[str]:
    made = [_section(f"{prefix}strategies", "Strategies", tables.strategies(point)),
            _section(f"{prefix}memory-against-time", "Memory against time", scatter.figure(point)),
            _section(f"{prefix}timelines", "Memory within one step", timelines.figures(point, prefix)),
            _section(f"{prefix}plans", "Plans", grids.grids(point))]
    errors = tables.parameters(point)
    return [*made, _section(f"{prefix}gradients", "Inexact gradients", errors)] if errors else made


def _section(name: str, title: str, inside: str) -> str:
    return element("section", element("h3", escape(title), id=f"{name}-title"), inside, id=name,
                   aria_labelledby=f"{name}-title")


def _origin(report: dict) -> str:
    """When this was measured, and the line that asked for it."""
    command = " by " + element("code", escape(report["command"])) if report["command"] else ""
    return element("p", f"Measured on {escape(report['date'])}{command}", class_="note")


def _problems(problems: list[str]) -> str:
    if not problems:
        return ""
    items = "".join(element("li", escape(problem)) for problem in problems)
    return element("section", element("h3", "Problems", id="problems-title"), element("ul", items), id="problems",
                   role="alert", aria_labelledby="problems-title")


def _contents(points: list[dict], swept: bool) -> str:
    if swept:
        places = [("sweep", "sweep"), *((f"point-{number}-head", setting_name(point["setting"]))
                                        for number, point in enumerate(points))]
    else:
        places = [("strategies", "strategies"), ("memory-against-time", "memory against time"), ("timelines", "timelines"),
                  ("plans", "plans")]
    places.append(("machine", "machine"))
    links = "".join(element("li", element("a", escape(words), href=f"#{name}")) for name, words in places)
    return element("nav", element("ul", links), aria_label="Sections")
