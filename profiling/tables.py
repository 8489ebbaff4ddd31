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
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "profiling" / "results"

_BEGIN = re.compile(r"^<!-- (table|picture):(\S+)(?: (.+?))? -->$", re.MULTILINE)
_END = "<!-- end -->"
NOTHING = "–"


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
    job = data.get("job") or {**data, **data.get("settings", {})}
    config, words = data.get("config"), []
    if config:
        words.append(f"{config['n_layers']} layers, C {config['d_model']}, H {config['n_heads']}, F {config['d_ff']}, "
                     f"V {config['vocab_size']}")
        words.append(f"batch {job['batch_size']} × {job['seq_len']}")
    machine = data["machine"]
    words += [job.get("dtype", "float32"), _threads(job.get('threads') or machine['cores']), machine["cpu"],
              machine["versions"]["compiler"]]
    return f"{'; '.join(words)}. MB are 10⁶ bytes. From `profiling/results/{name}.json`."


# A view makes a header and rows of words from what a script wrote ----------------------------------------------------

Table = tuple[Sequence[str], list[Sequence[str]]]


def _compared(data: dict) -> Table:
    header = ("strategy", "step s (least to most)", "tokens/s", "time against cache", "arena MB", "total MB",
              "process peak MB", "loss", "gradient digest")
    return header, [_compared_row(row) for row in data["rows"]]


def _compared_row(row: dict) -> Sequence[str]:
    if row["step_seconds"] is None:
        return (_code(row["strategy"]), f"failed: {row['error']}", *[NOTHING] * 7)
    digest = row["grad_sha256"][:12] + ("" if row["exact"] else " (inexact)")
    return (_code(row["strategy"]), spread(row["step_seconds"]), f"{row['tokens_per_second']:,.0f}",
            number(row["slowdown_vs_cache"], ".2f"), megabytes(row["arena_bytes"]), megabytes(row["total_bytes"]),
            megabytes(row["rss_peak_bytes"]), f"{row['losses'][-1]:.4f}", _code(digest))


def _compared_predictions(data: dict) -> Table:
    rows = [(row["strategy"], row["predicted_step_seconds"], row["step_seconds"]["median"]) for row in data["rows"]
            if row["step_seconds"]]
    return _predictions(rows)


def _remembered(data: dict) -> Table:
    header = ("strategy", "arena, predicted", "arena, recorded", "predicted total", "process before the model",
              "process, predicted", "process, sampled", "sampled over predicted")
    keys = ("arena_bytes", "high_water_bytes", "total_bytes", "rss_start_bytes", "predicted_process_bytes",
            "sampled_process_bytes")
    return header, [(_code(row["name"]), *[megabytes(row[key]) for key in keys],
                     number(row["sampled_over_predicted"], ".3f")) for row in data["rows"]]


def _speeds(data: dict) -> Table:
    kinds = list(dict.fromkeys(kind for row in data["rows"] for kind in row["by_kind"]))
    header = ("strategy", "step s (least to most)", _against(data), *[f"{kind} ms" for kind in kinds])
    return header, [(_code(row["name"]), spread(row["seconds"]), row["ratio_text"],
                     *[number(row["by_kind"].get(kind), ".1f", 1e3) for kind in kinds]) for row in data["rows"]]


def _steps(data: dict) -> Table:
    first = data["rows"][0]["by_step"]
    kinds = list(dict.fromkeys(kind for by in first.values() for kind in by))
    order = sorted(first.items(), key=lambda item: -sum(item[1].values()))
    return ("step", *[f"{kind} ms" for kind in kinds]), [
        (_code(name), *[number(by.get(kind), ".2f", 1e3) for kind in kinds]) for name, by in order]


def _contested(data: dict) -> Table:
    header = ("contestant", "step s (least to most)", _against(data), "growth MB", "arena MB", "first loss")
    return header, [(_code(row["name"]), spread(row["seconds"]), row["ratio_text"], megabytes(row["growth_bytes"]),
                     megabytes(row.get("arena_bytes")), f"{row['loss']:.6f}") for row in data["rows"]]


def _contested_predictions(data: dict) -> Table:
    return _predictions([(row["name"], row["predicted_seconds"], row["seconds"]["median"]) for row in data["rows"]
                         if row.get("predicted_seconds")])


def _kernels(data: dict) -> Table:
    libraries = [one for one in ("cllm", "numpy", "torch") if any(one in row["rate"] for row in data["rows"])]
    header = ("kernel", "shape", "unit", *libraries, "limit", "share of the limit",
              *[f"time of cllm against {one}" for one in libraries if one != "cllm"])
    rows = [(_code(row["kernel"]), " × ".join(map(str, row["shape"])), row["unit"],
             *[number(row["rate"].get(one), ".1f", 1e-9) for one in libraries], number(row["limit"], ".1f", 1e-9),
             number(row["share"].get("cllm"), ".2f"),
             *[row["text"].get(one, NOTHING) for one in libraries if one != "cllm"]) for row in data["rows"]]
    return header, rows


def _against(data: dict) -> str:
    return f"time against {data['rows'][0]['against']}" if data["rows"] else "ratio"


def _depths(data: dict, sweep: str, key: str) -> Table:
    """A row for each depth or batch, arena and time of each strategy beside it."""
    mine = [row for row in data["rows"] if row["sweep"] == sweep]
    names = list(dict.fromkeys(row["name"] for row in mine))
    found = {(row[key], row["name"]): row for row in mine}
    rows = [(str(n), *[cell for name in names for cell in _size_and_time(found.get((n, name)))])
            for n in dict.fromkeys(row[key] for row in mine)]
    return (key, *[f"{name}, {unit}" for name in names for unit in ("MB", "ms")]), rows


def _size_and_time(row: dict | None) -> tuple[str, str]:
    return (NOTHING, NOTHING) if row is None else (megabytes(row["arena_bytes"]),
                                                   number(row["seconds"]["median"], ".1f", 1e3))


def _overheads(data: dict) -> Table:
    header = ("strategy", "", "operations a step", "ms a step (least to most)")
    return header, [(_code(row["strategy"]), row["what"], str(row["operations"]),
                     f"{row['seconds']['median'] * 1e3:.3f} ({row['seconds']['min'] * 1e3:.3f} to "
                     f"{row['seconds']['max'] * 1e3:.3f})") for row in data["rows"]]


def _trained(data: dict) -> Table:
    header = ("", "steps", "seconds in all", "step s (least to most)", "validation loss, nats per token")
    return header, [(row["name"], str(row["evaluations"][-1]["step"]), f"{row['seconds']:.1f}",
                     spread(row["step_seconds"]), f"{row['evaluations'][-1]['val_loss']:.4f}") for row in data["rows"]]


def _predictions(rows: list[tuple[str, float, float]]) -> Table:
    """Predicted against measured seconds, and the median of how far they are apart."""
    errors = [predicted / measured - 1 for _, predicted, measured in rows]
    made = [(_code(name), f"{predicted:.3f}", f"{measured:.3f}", f"{error:+.1%}")
            for (name, predicted, measured), error in zip(rows, errors, strict=True)]
    if errors:
        made.append(("median of the distances", "", "", f"{median(map(abs, errors)):.1%}"))
    return ("strategy", "predicted s", "measured s (median)", "predicted over measured"), made


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("cllm compare", ""): _compared,
    ("cllm compare", "predictions"): _compared_predictions,
    ("memory", ""): _remembered,
    ("speed", ""): _speeds,
    ("speed", "steps"): _steps,
    ("compare", ""): _contested,
    ("compare", "predictions"): _contested_predictions,
    ("kernels", ""): _kernels,
    ("depth", "layers"): lambda data: _depths(data, "depth", "layers"),
    ("depth", "batch"): lambda data: _depths(data, "batch", "batch"),
    ("overhead", ""): _overheads,
    ("training", ""): _trained,
}


# Words ---------------------------------------------------------------------------------------------------------------

def number(value: float | None, form: str, scale: float = 1.0) -> str:
    """A figure in that form, or a dash where there is none."""
    return NOTHING if value is None else format(value * scale, form)


def megabytes(nbytes: int | None) -> str:
    """Bytes as MB of 10^6."""
    return number(nbytes, ".1f", 1e-6)


def spread(seconds: dict) -> str:
    """Median, least and most."""
    return f"{seconds['median']:.3f} ({seconds['min']:.3f} to {seconds['max']:.3f})"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _code(word: str) -> str:
    return f"`{word}`"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
