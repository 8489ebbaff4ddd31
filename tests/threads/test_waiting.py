"""Idle threads spin for a bounded time unless the user says otherwise, and child processes inherit nothing of it."""
import ctypes.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cllm
from cllm import _build_info
from cllm.threads import waiting

pytestmark = pytest.mark.skipif(not _build_info.OPENMP or not any("gomp" in name for name in waiting._runtimes()),
                                reason="not GNU's OpenMP runtime")
SAY = """
import cllm, os
print(cllm.versions()["waiting"])
print(sorted({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)))
"""


def run(program=SAY, **variables):
    """What a process says, and the rounds that its runtime shows."""
    kept = {name: value for name, value in os.environ.items() if name not in waiting.VARIABLES}
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, timeout=60, check=True,
                          env={**kept, "PYTHONPATH": str(Path(cllm.__file__).parents[1]), "OMP_DISPLAY_ENV": "verbose",
                               **variables})
    return done.stdout.splitlines(), re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)


def test_spinning_is_bounded_and_children_inherit_nothing():
    said, rounds = run()
    assert said == [f"spin for {waiting.SPIN_COUNT} rounds, then sleep", "[]"] and rounds == [str(waiting.SPIN_COUNT)]


def test_the_page_and_its_figures_are_of_this_limit():
    """One that is changed is measured anew: `python profiling/waiting.py`."""
    page = Path(__file__).parents[2] / "docs" / "threads.md"
    if not page.exists() or "GOMP_SPINCOUNT" in os.environ or os.uname().machine != "x86_64":
        pytest.skip("not where the page is from")
    assert f"waiting          spin for {waiting.SPIN_COUNT} rounds, then sleep" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("variables, rounds", [({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0"),
                                               ({"OMP_WAIT_POLICY": "active"}, "30000000000")])
def test_what_the_user_says_counts(variables, rounds):
    said, shown = run(**variables)
    (name, value), = variables.items()
    assert said == [f"as {name}={value} says", f"['{name}']"] and shown == [rounds]


def test_a_runtime_that_was_there_before_is_named():
    """Its variables have been read: what it does stays as it is."""
    library = ctypes.util.find_library("gomp")
    if library is None:
        pytest.skip("the runtime has another name")
    said, rounds = run(f"import ctypes; ctypes.CDLL({library!r})\n" + SAY)
    assert said[0].startswith("as libgomp.so") and "another library loaded before cllm" in said[0]
    assert rounds == ["300000"]


def test_what_is_said_where_there_is_nothing_to_see(monkeypatch, tmp_path):
    monkeypatch.setattr(waiting, "_how", "")
    monkeypatch.setattr(waiting, "MAPS", tmp_path / "none")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with waiting.bounded_spinning():
        assert os.environ["GOMP_SPINCOUNT"] == str(waiting.SPIN_COUNT)
    assert "GOMP_SPINCOUNT" not in os.environ and waiting.describe_waiting() == "no OpenMP runtime, or none that can be seen"


@pytest.mark.parametrize("line, name", [
    ("7f00-7f01 r-xp 0000 00:00 1 /usr/lib/libgomp.so.1.0.0", "libgomp.so.1.0.0"),
    ("7f00-7f01 r-xp 0000 00:00 1 /a/torch/lib/libgomp-a34b3233.so.1", "libgomp-a34b3233.so.1"),
    ("7f00-7f01 r-xp 0000 00:00 1 /opt/libiomp5.so", "libiomp5.so"),
    ("7f00-7f01 r-xp 0000 00:00 1 /opt/llvm/libomp.so.5", "libomp.so.5"),
    ("7f00-7f01 r-xp 0000 00:00 1 /usr/lib/libcompress.so", None),
    ("7f00-7f01 r-xp 0000 00:00 1 /home/libgomp.txt/other.so", None)])
def test_runtimes_are_known_by_their_names(line, name, monkeypatch, tmp_path):
    (tmp_path / "maps").write_text(f"7e00-7e01 rw-p 0000 00:00 0\n{line}\n")
    monkeypatch.setattr(waiting, "MAPS", tmp_path / "maps")
    assert waiting._runtimes() == ({name} if name else set())
