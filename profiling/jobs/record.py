"""What a script leaves behind: its result as JSON, with what must stand beside every figure."""

import json
import platform
import re
import subprocess
from datetime import date
from pathlib import Path

from peers import process
from peers.process import ROOT

RESULTS = ROOT / "profiling" / "results"


def surroundings(threads: int) -> dict:
    """Machine, build, commit, load and the pools' limits, as plain data."""
    from cllm.comparison.machine import describe_machine

    return {
        "date": date.today().isoformat(), "machine": describe_machine(), "commit": commit(),
        "threads": threads, "processors": sorted(process.processors(threads) or ()), "wait_policy": process.wait_policy,
    }


def commit() -> str | None:
    """The checkout's commit, with a plus sign when code differs from it; None outside a repository."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", ".",
                                                                      ":!profiling/results", ":!*.md") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def result_path(script: str, suffix: str) -> Path:
    """Where a script's result belongs: by script, date and kind of machine."""
    from cllm.comparison.machine import cpu_name

    machine = re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {platform.machine()}".lower()).strip("-")
    return RESULTS / f"{script}-{date.today().isoformat()}-{machine}{suffix}"


def write_result(script: str, threads: int, data: dict, path: Path | None = None) -> Path:
    """Write `data` and its surroundings as JSON; returns where."""
    path = result_path(script, ".json") if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text({"script": script, **surroundings(threads), **data}), encoding="utf-8")
    return path


def json_text(data: dict) -> str:
    """Indented JSON with every list of plain values on one line: thousands of samples must not take thousands of lines."""
    def on_one_line(found: re.Match) -> str:
        return "[" + re.sub(r"\n\s+", " ", found[1]) + "]"  # a string of JSON holds no line break

    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", on_one_line, json.dumps(data, indent=1, ensure_ascii=False)) + "\n"
