"""Two builds of the kernels, in one process."""

import json
import sys

import pytest
from profiling_scripts import FOLDER, script


def test_a_build_is_held_against_itself(tmp_path, monkeypatch, capsys):
    builds, kernels = script("builds"), sys.modules["cllm._kernels"]
    monkeypatch.setitem(sys.modules, "cllm._kernels", kernels)  # put back afterwards
    monkeypatch.setattr(builds, "_kernels", lambda tree: kernels)
    out = tmp_path / "builds.json"
    monkeypatch.setattr(sys, "argv", ["builds.py", "--before", str(FOLDER.parent), "--shapes", "4x3x5", "--rounds", "3",
                                      "--threads", "1", "--out", str(out)])
    assert builds.main() == 0
    result = json.loads(out.read_text())
    assert [row["product"] for row in result["rows"]] == ["forward", "weight gradient", "input gradient"]
    assert all(row["speed"] > 0 and min(row["best"]) >= min(row["median"]) > 0 for row in result["rows"])
    assert "geometric mean" in capsys.readouterr().out


def test_a_tree_that_is_not_built_is_named(tmp_path):
    with pytest.raises(SystemExit, match="has no built cllm/_kernels"):
        script("builds")._kernels(tmp_path)
