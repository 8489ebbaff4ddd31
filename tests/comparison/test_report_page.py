"""The report as one page: parsed, for what must be there and what must not; and in a browser, where there is one."""
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from longer import whole

from cllm.comparison.axes import Linear
from cllm.comparison.contestants import labelled
from cllm.comparison.description import describe_plan, describe_timeline
from cllm.comparison.experiment import Experiment, report_of
from cllm.comparison.html import page
from cllm.comparison.html.svg import Frame, element, escape, megabytes
from cllm.comparison.job import Job
from cllm.comparison.runner import Run, Runs
from cllm.models.architecture import program_of
from cllm.models.gpt import ModelConfig
from cllm.planner.ledger import Ledger
from cllm.planning import decide
from cllm.program.workload import Workload

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '<script>alert("x")</script>&"\'</title>'
VOID = {"meta", "input"}
JOB = Job(ModelConfig(256, 3, 16, 2, 24, 9), batch_size=4, seq_len=8, steps=2, threads=1, text=HOSTILE)
MACHINE = {"cpu": HOSTILE, "cores": 2, "memory_bytes": 25_276_514_304, "load_average": [0.123456, 2.0, 3.0],
           "versions": {"cllm": "0", "flags": ["-O3", "</style>"]}}
STRATEGIES = ("cache", "recompute", "int8", "sqrt@2")


def a_run(strategy, job=JOB):
    """One run, its measured figures made up."""
    program = program_of(job.architecture)
    ledger = Ledger(program, Workload(job.batch_size, job.seq_len))
    made = decide(strategy, ledger)
    _, memory = ledger.build(made)
    return Run(strategy, 0, {
        "exact": made.exact, "step_seconds": [0.1 * len(strategy), 0.3], "predicted_step_seconds": made.predicted_seconds,
        "process_seconds": [0.1], "message_bytes": 0, "crowded": [],
        "arena_bytes": memory.arena_bytes, "high_water_bytes": memory.arena_bytes, "total_bytes": memory.total_bytes,
        "rss_peak_bytes": 10_000_000 + memory.total_bytes, "rss_start_bytes": 10_000_000, "losses": [3.0, 2.0],
        "grad_sha256": ("ab" if made.exact else "cd") * 32, "plan": describe_plan(made, memory, program),
        "timeline": describe_timeline(memory, program)})


def a_report(swept=False):
    """A report with everything: failures, errors of gradients, a curve, peers, names that try to break out."""
    errors = {"int8": {"reference": "cache", "relative_error": 0.01, "cosine": 0.999,
                       "by_parameter": {HOSTILE: {"relative_error": None, "cosine": 0.5}}}}
    curve = [{"total_bytes": 10_000 * n, "arena_bytes": 1, "predicted_step_seconds": 1 / n} for n in range(1, 12)]
    peers = [{"date": "today", "cpu": HOSTILE, "points": [{"name": f"torch {HOSTILE}", "step_seconds": 0.4,
                                                           "memory_bytes": 90_000}]}]
    points, runs = [], []
    for time in (4, 8) if swept else (8,):
        job = Job(JOB.architecture, 4, time, 2, threads=1, text=HOSTILE)
        names = {name: name for name in (*STRATEGIES, HOSTILE)}
        points.append(Experiment(job, names, {"seq_len": time} if swept else {}, curve, peers, f"guessed by {HOSTILE}"))
        done = [*(a_run(name, job) for name in STRATEGIES), Run(HOSTILE, 0, None, f"died of {HOSTILE}")]
        runs.append(Runs(job, names, done, gradient_errors=errors))
    return report_of(points, runs, MACHINE, {"seq_len": [4, 8]} if swept else {}, f"cllm compare --text {HOSTILE}")


class Page(HTMLParser):
    """A page's elements, flat, each with the text inside it; elements must close in order."""

    def __init__(self, source):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(source)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", "children": 0, **dict(attrs)})
        for one in self._open:
            one["children"] += 1
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for one in self._open:
            one["text"] += data

    def all(self, tag, **attributes):
        """The elements with that tag and those attributes."""
        return [one for one in self.elements if one["tag"] == tag
                and all(one.get(name.rstrip("_").replace("_", "-")) == value for name, value in attributes.items())]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "sweep"])
def source(request):
    return page.render(a_report(request.param))


def test_every_section_is_there(source):
    found = Page(source)
    points = 2 if "The sweep" in source else 1
    titles = [one["text"] for one in found.all("h3")]
    for title in ("Strategies", "Memory against time", "Memory within one step", "Plans", "Inexact gradients"):
        assert titles.count(title) == points
    assert "The machine" in titles and "Problems" in titles
    ids = [one["id"] for one in found.elements if one.get("id")]
    assert len(ids) == len(set(ids))
    for one in found.elements:
        for name in ("aria-labelledby", "for"):
            assert one.get(name) is None or one[name] in ids
    assert all(one["href"].removeprefix("#") in ids for one in found.all("a"))


def test_every_picture_is_there_and_labelled(source):
    found = Page(source)
    points = 2 if "The sweep" in source else 1
    pictures = [one for one in found.all("svg") if one.get("aria-hidden") != "true"]
    assert len(pictures) == points * (2 + len(STRATEGIES)) + (2 if points == 2 else 0)
    assert all(one["aria-label"] and one["role"] in ("img", "group") and one["children"] > 5 for one in pictures)
    for strategy in STRATEGIES:
        assert sum(one["aria-label"].startswith(f"Timeline of {strategy}:") for one in pictures) == points
    assert len(found.all("path", class_="curve")) >= points
    for word in ("measured", "predicted"):
        named = [one for one in found.all("g") if f", {word}: " in one["aria-label"]]
        assert named and all(one["tabindex"] == "0" for one in named)
    cache = next(one["aria-label"] for one in found.all("g") if one["aria-label"].startswith("cache, measured: "))
    assert cache.endswith(", 0.400 s (0.300 s to 0.500 s)")
    for line in ("interval", "shift"):
        assert len(found.all("line", class_=f"{line} strategies")) == 2 * points * len(STRATEGIES), "wide and narrow"


def test_everything_is_reached_by_keyboard_and_named(source):
    found = Page(source)
    sliders = found.all("input", type="range")
    assert sliders and all(one["aria-valuetext"] for one in sliders)
    labels = [one["text"] for one in found.all("label")]
    assert len(labels) == len(sliders) and all(text.startswith("Operation of ") for text in labels)
    regions = found.all("div", class_="wide")
    assert regions and all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in regions)
    assert found.all("html")[0]["lang"] == "en" and found.all("nav")[0]["aria-label"]
    assert all(one["scope"] in ("row", "col") for one in found.all("th"))


def test_plans_are_grids_of_blocks_by_sites(source):
    found = Page(source)
    grids = found.all("table", class_="plan")
    assert len(grids) == (2 if "The sweep" in source else 1) * len(STRATEGIES)
    words = {one["class"] for one in found.all("td") if (one.get("class") or "").startswith("word ")}
    assert words == {"word kept", "word rebuilt", "word compressed", "word absent"}
    assert found.all("td", title="int8")[0]["text"] == "Cint8"


def test_the_page_says_when_and_by_what_it_was_made(source):
    notes = [one["text"] for one in Page(source).all("p", class_="note")]
    assert any(re.fullmatch(r"Measured on \d{4}-\d\d-\d\d by cllm compare --text .*", one, re.DOTALL) for one in notes)
    assert any(f"Predicted seconds: guessed by {HOSTILE}" in one for one in notes)


def test_figures_of_the_machine_are_rounded(source):
    shown = [one["text"] for one in Page(source).all("td")]
    assert "25,277 MB" in shown and "0.12, 2.00, 3.00" in shown
    assert megabytes(32) == "32 bytes" and megabytes(None) == "–" and megabytes(12_345_678) == "12.3 MB"


def test_a_plan_tells_how_often_blocks_are_rebuilt(source):
    times = [one["text"] for one in Page(source).all("td", class_="times")]
    points = 2 if "The sweep" in source else 1
    assert times == [*"···", *"111", *"···", *"111"] * points


def test_it_loads_nothing(source):
    found = Page(source)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", source.replace("// A timeline", ""))
    assert not found.all("link") and not found.all("img") and not found.all("iframe")
    assert all("src" not in one for one in found.elements)
    assert "prefers-color-scheme: dark" in source


def test_hostile_names_stay_text(source):
    found = Page(source)
    assert "<script>alert" not in source and "</style>" not in source.replace("</style></head>", "")
    scripts = found.all("script")
    assert len(scripts) == len(found.all("figure", class_="timeline")) + 1
    assert len(found.all("title")) > 1 and len(found.all("style")) == 1
    assert any(one["text"] == HOSTILE for one in found.all("th")), "it is shown, as text"
    assert any(HOSTILE in one["text"] for one in found.all("td", class_="failed"))


def test_hostile_operations_cannot_end_their_script():
    report = a_report()
    report["rows"][0]["timeline"]["operations"][0] = "</script><b>"
    found = Page(page.render(report))
    assert not found.all("b")
    data = [json.loads(one["text"]) for one in found.all("script", type="application/json")]
    assert any(one["operations"][0] == "</script><b>" for one in data)


def test_the_hover_text_has_every_operation():
    report = a_report()
    found = Page(page.render(report))
    for row, script in zip(report["rows"], found.all("script", type="application/json"), strict=False):
        assert json.loads(script["text"]) == {name: row["timeline"][name] for name in ("operations", "bytes", "by_kind")}


def test_nothing_measured_is_a_page_too():
    cache = {"cache": "cache"}
    report = report_of([Experiment(JOB, cache)], [Runs(JOB, cache, interrupted=True)], {"cpu": "x"}, {})
    text = page.render(report)
    assert "interrupted before it ran" in text and text.count("Nothing was measured.") == 2 and "Nothing ran." in text


def test_without_the_system_the_page_has_no_measured_points():
    report = a_report()
    for row in report["rows"]:
        row["rss_peak_bytes"] = None
    assert "strategies, measured" not in page.render(report)


def test_a_frame_turns_values_into_places():
    frame = Frame(200, 100, Linear(0, 10), Linear(0, 5))
    assert frame.x(0) < frame.x(10) == 200 - 14 and frame.y(5) == 12 < frame.y(0)
    assert element("a", escape("<"), class_="x", aria_label='"', skipped=None) == '<a class="x" aria-label="&quot;">&lt;</a>'


# in a browser

def browse(path, tmp_path, width=800):
    """The page after its scripts ran, and what the console said."""
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                           "--disable-background-networking", "--enable-logging=stderr", "--virtual-time-budget=2000",
                           f"--window-size={width},900", "--dump-dom", path.as_uri()],
                          capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_in_a_browser(tmp_path):
    path = tmp_path / "report.html"
    text = page.render(a_report(swept=True))
    # The script also measures what the browser made of each picture, where an empty or broken one has no size.
    probe = """<script>for (const svg of document.querySelectorAll("svg")) {
        const box = svg.getBBox(); svg.setAttribute("data-size", Math.min(box.width, box.height + 9)); }
        for (const table of document.querySelectorAll(".plans .wide")) {
        table.setAttribute("data-hidden", table.scrollWidth - table.clientWidth); }</script>"""
    path.write_text(text.replace("</body>", probe + "</body>"))
    shown, complaints = browse(path, tmp_path)
    assert not complaints
    found = Page(shown.replace("<!DOCTYPE html>", ""))
    pictures = found.all("svg")
    assert len(pictures) == len(Page(text).all("svg")) and all(
        float(one["data-size"]) > 5 for one in pictures if one.get("class") != "on-narrow")
    plans = found.all("div", class_="wide", data_hidden="0")
    assert len(plans) == len(found.all("table", class_="plan")), "no block of a plan lies outside its room"
    outputs = found.all("output")
    assert outputs and all(re.fullmatch(r"\d+ of \d+, .*: .* MB \(.*\)", one["text"]) for one in outputs), "the script ran"
    assert all(float(one["x1"]) > 0 for one in found.all("line", class_="cursor"))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_script_error_would_be_seen(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.render(a_report()).replace('"use strict";', '"use strict"; nonsense();'))
    assert any("nonsense" in line for line in browse(path, tmp_path)[1])


DEEP = Job(ModelConfig(13, 12, 16, 2, 24, 9), batch_size=4, seq_len=8, steps=2, threads=1)
LEGIBLE = 10  # pixels of the letters in pictures, at the least


@pytest.fixture(scope="module")
def deep_page():
    """Twelve blocks under many strategies, some of whose points lie close to each other."""
    names = labelled(["cache", "recompute", "every:2", "selective", "sqrt", "binomial:3", "sqrt@2", "budget:0.47MB",
                      "budget:0.5MB"])
    runs = [a_run(name, DEEP) for name in names]
    return page.render(report_of([Experiment(DEEP, names)], [Runs(DEEP, names, runs)], MACHINE, {}))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [420, whole(1280), 1440])
def test_everything_can_be_read_at_every_width(deep_page, tmp_path, width):
    path = tmp_path / "report.html"
    probe = """<script>
        for (const one of document.querySelectorAll("svg text, svg circle, svg rect.budgets")) {
        const box = one.getBoundingClientRect();
        one.setAttribute("data-box", JSON.stringify(box.width ? [box.left, box.top, box.right, box.bottom] : []));
        one.setAttribute("data-letters", 12 * one.ownerSVGElement.getScreenCTM()?.a); }
        for (const table of document.querySelectorAll(".plans .wide")) {
        table.setAttribute("data-hidden", table.scrollWidth - table.clientWidth); }
        document.body.setAttribute("data-hidden", document.documentElement.scrollWidth - innerWidth);</script>"""
    path.write_text(deep_page.replace("</body>", probe + "</body>"))
    shown, complaints = browse(path, tmp_path, width)
    assert not complaints
    found = Page(shown.replace("<!DOCTYPE html>", ""))
    plans = found.all("div", class_="wide", data_hidden="0")
    assert len(plans) == len(found.all("table", class_="plan")), "no block of a plan lies outside its room"
    assert float(found.all("body")[0]["data-hidden"]) <= 0
    texts = [one for one in found.all("text") if json.loads(one["data-box"])]
    assert texts and all(float(one["data-letters"]) >= LEGIBLE for one in texts)
    names = [json.loads(one["data-box"]) for one in texts if one.get("class") == "name"]
    marks = [json.loads(one["data-box"]) for one in found.all("circle") + found.all("rect")
             if json.loads(one.get("data-box") or "[]")]
    assert len(names) >= 7 and len(marks) >= 18
    for place, one in enumerate(names):
        assert not any(one[0] < other[2] - 1 and other[0] < one[2] - 1 and one[1] < other[3] - 2 and other[1] < one[3] - 2
                       for other in names[place + 1:] + marks), "names lie neither on each other nor on a mark"
