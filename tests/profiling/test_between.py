"""Two source trees, in turn."""

import json
import subprocess
import sys

from profiling_scripts import FOLDER


def test_a_tree_is_held_against_itself(tmp_path):
    out = tmp_path / "between.json"
    done = subprocess.run([sys.executable, str(FOLDER / "between.py"), "--before", str(FOLDER.parent), "--preset", "tiny",
                           "--batch-size", "2", "--seq-len", "8", "--steps", "3", "--rounds", "1", "--threads", "1",
                           "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    least = json.loads(out.read_text())["least_seconds"]
    assert least["before"].keys() == least["after"].keys() >= {"Attention backward", "Linear forward", "step", "optimizer"}
    for seconds in least.values():
        assert all(0 < one < 10 for kind, one in seconds.items() if kind != "elsewhere")
        assert sum(one for kind, one in seconds.items() if kind not in ("step", "optimizer")) > 0
    assert "Linear forward" in done.stdout


def test_a_tree_without_the_package_is_named(tmp_path):
    done = subprocess.run([sys.executable, str(FOLDER / "between.py"), "--before", str(tmp_path), "--preset", "tiny",
                           "--batch-size", "1", "--seq-len", "4", "--steps", "1", "--rounds", "1"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"{tmp_path}: has no package cllm" in done.stderr
