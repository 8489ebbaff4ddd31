"""Fills the tables and pictures of README and docs from profiling/results, so that no figure is typed by hand.

    python profiling/tables.py            fill them in
    python profiling/tables.py --check    change nothing; exit with 1 if a page would change

A page holds a line ``<!-- table:NAME -->`` or ``<!-- table:NAME VIEW -->`` and, further down, ``<!-- end -->``. What
stands between the two is replaced by a table of ``profiling/results/NAME.json``. Which table, that file's "script"
decides (a file without one was written by ``cllm compare --json``), and VIEW where a script has several.
``<!-- picture:NAME words -->`` does the same with ``profiling/results/NAME.png``; the words describe it to those who
cannot see it. What was not measured says so.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.record import RESULTS, ROOT
from views import VIEWS
from words import count, extent, settings, workload

_BEGIN = re.compile(r"^<!-- (table|picture):(\S+)(?: (.+?))? -->$", re.MULTILINE)
_END = "<!-- end -->"


def main() -> int:
    """Fill every page; the exit code is 1 when --check finds one that is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page would change")
    check = parser.parse_args().check
    changed = []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = filled(before, page.parent)
        if after != before:
            changed.append(page)
            if not check:
                page.write_text(after, encoding="utf-8")
    for page in changed:
        print(f"{'not up to date' if check else 'filled'}: {page.relative_to(ROOT)}")
    return 1 if check and changed else 0


def pages() -> list[Path]:
    """README and every page of the docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str, folder: Path, results: Path = RESULTS) -> str:
    """A page's text with everything between its markers made anew.

    Parameters
    ----------
    text : str
    folder : Path
        Where the page is, for the addresses of pictures.
    results : Path
        Where the results are.

    Raises
    ------
    ValueError
        When a marker is not closed, or asks for a view that there is not.
    """
    parts, place = [], 0
    while found := _BEGIN.search(text, place):
        end = text.find("\n" + _END, found.end())
        following = _BEGIN.search(text, found.end())
        if end < 0 or (following and following.start() < end):
            raise ValueError(f"{found[0]} has no {_END} after it")
        kind, name, words = found.groups()
        made = table(name, words or "", results) if kind == "table" else picture(name, words or name, folder, results)
        parts += [text[place:found.end()], "\n", made]
        place = end
    return "".join([*parts, text[place:]])


def picture(name: str, words: str, folder: Path, results: Path) -> str:
    """The line that shows a picture, or that there is none yet."""
    path = results / f"{name}.png"
    if not path.exists():
        return f"*Not drawn yet: {words}.*"
    return f"![{words}]({Path(os.path.relpath(path, folder)).as_posix()})"


def table(name: str, view: str, results: Path) -> str:
    """The table of a result, with a line below it that says what was measured, and where."""
    path = results / f"{name}.json"
    if not path.exists():
        return f"*Not measured yet (`profiling/results/{name}.json`).*"
    data = json.loads(path.read_text(encoding="utf-8"))
    script = data.get("script", "cllm compare")
    if (script, view) not in VIEWS:
        views = sorted(v for s, v in VIEWS if s == script)
        raise ValueError(f"{name}.json of {script} has no view {view!r}; there are {views}")
    header, rows = VIEWS[script, view](data)
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)]), *map(_line, rows), "", caption(data, name)]
    lines += [f"Problem: {problem}" for problem in data.get("problems", ())]
    return "\n".join(lines)


def caption(data: dict, name: str) -> str:
    """Model, batch, machine and file, in one line."""
    job, machine = settings(data), data["machine"]
    words = [*workload(data), *extent(data), job.get("dtype", "float32"),
             count(job.get("threads") or machine["cores"], "thread"), machine["cpu"], machine["versions"]["compiler"]]
    return f"{'; '.join(words)}. MB are 10⁶ bytes. From `profiling/results/{name}.json`."


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
