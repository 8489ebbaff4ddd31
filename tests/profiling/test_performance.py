"""One processor's result: every section is measured, told in tables, and not measured again; bases in blocks."""
import argparse
import sys

import pytest
from profiling_scripts import script

import cllm
from cllm.models.llama import Llama


class Known:
    """Limits of a machine that nobody measures."""

    library = None

    def __init__(self, folder, threads):
        pass

    def look(self, nbytes=0):
        pass

    def flops(self):
        return 1e12

    def bandwidth(self, nbytes):
        return 1e12


def test_a_processor_is_measured_without_pytorch_and_goes_on_where_it_was_ended(tmp_path, monkeypatch, capsys):
    performance, process = script("performance"), script("peers.process")
    assert not process.has_torch(str(tmp_path / "none"))
    monkeypatch.setattr(performance, "OTHER_SHAPES", ((9, 5, 7),))
    monkeypatch.setattr(performance.kernels, "PRODUCTS", ((4, 8, 16),))
    monkeypatch.setitem(performance.kernels.SHAPES, performance.BLOCKS, ((8, 2, 4),))
    monkeypatch.setattr(performance, "STEPS", (("tiny", 1, 8),))
    monkeypatch.setattr(performance.process, "has_torch", lambda python: False)
    for user in (performance, performance.kernels):
        monkeypatch.setattr(user, "Limits", Known)
    place = tmp_path / "performance.json"
    known = {"rows": [], "problems": ["a canned one"]}
    performance.Parts(place, {"threads": 1, "rounds": 1, "contestants": ()}).part("attention", lambda: known)
    monkeypatch.setattr(sys, "argv", ["performance.py", "--threads", "1", "--rounds", "1", "--out", str(place)])
    assert performance.main() == 1 and not (tmp_path / "performance.part").exists()
    told = capsys.readouterr().out
    data = script("tables").json.loads(place.read_text())
    assert [len(rows) for rows in data["kernels"].values()] == [7, 0]
    assert data["problems"] == ["attention: a canned one"], "of a run that was ended, what is finished counts"
    assert [row["name"] for row in data["steps"]["tiny 1 x 8"]] == ["cache", "cache+bfloat16"]
    assert all(row["flops"] > 0 for row in data["steps"]["tiny 1 x 8"]) and "9 × 5 × 7" in told
    arenas = [row["arena_bytes"] for row in data["steps"]["tiny 1 x 8"]]
    assert arenas[1] < arenas[0], "the second contestant computes in bfloat16"


def test_a_step_is_held_against_pytorchs_plain_step():
    views = script("views").VIEWS

    def row(name, seconds, **more):
        return {"name": name, "growth_bytes": None, **more,
                "seconds": {"median": seconds, "min": seconds, "max": seconds, "rounds": [[seconds], [seconds]]}}

    rows = [row("cache", 0.5, flops=1e9), row("torch eager", 2.0), row("torch compile", 1.0)]
    _, told = views["performance", ""]({"steps": {"small": rows}, "limit": 4e9})
    assert [one[3] for one in told] == ["0.25 (0.25 to 0.25)", "1", "0.50 (0.50 to 0.50)"]
    assert [one[4] for one in told] == ["0.50", "–", "–"]


@pytest.mark.parametrize("name, least, most", [
    ("cache", 0, 3e-5), ("cache+bfloat16", 1e-3, 6e-3), ("cache+bfloat16:units", 1e-3, 6e-3),
    ("torch autocast", 1e-3, 6e-3)])
def test_losses_may_differ_by_what_rounding_explains(name, least, most):
    compare = script("compare")
    rows = [{"name": "first", "loss": 2.0}, {"name": name, "loss": 2.0 * (1 + least)}]
    assert compare.different_losses(rows) == []
    rows[1]["loss"] = 2.0 * (1 + most)
    assert len(compare.different_losses(rows)) == 1


def test_a_base_in_blocks_is_measured(tmp_path):
    pytest.importorskip("gguf", reason="needs the extra hf")
    quantised_base, models = script("quantised_base"), script("jobs.models")
    small = Llama(vocab_size=64, n_layers=2, d_model=64, n_heads=4, d_ff=96, max_seq_len=16, n_kv_heads=2, tied=True)
    arguments = argparse.Namespace(rank=2, strategies="cache,recompute", batch_size=1, seq_len=8, rounds=1, threads=1)
    file = tmp_path / "Q4_1.gguf"
    rows, wrong = quantised_base.measured(arguments, models.told(small), "Q4_1", file)
    assert wrong == [] and [row["name"] for row in rows] == ["cache", "recompute"]
    model = cllm.from_gguf(file, mapped=True)
    matrices = sum(values.size for values in model.parameters.values() if values.ndim == 2)
    vectors = sum(values.nbytes for values in model.parameters.values() if values.ndim == 1)
    assert rows[0]["base_bytes"] == matrices * 20 // 32 + vectors
    assert rows[0]["arena_bytes"] > rows[1]["arena_bytes"] and rows[0]["peak_bytes"] > rows[0]["total_bytes"]
    header, told = script("views").VIEWS["quantised_base", ""]({"rows": rows})
    assert len(header) == len(told[0]) and told[1][:2] == ("Q4_1", script("words").megabytes(rows[0]["base_bytes"]))
