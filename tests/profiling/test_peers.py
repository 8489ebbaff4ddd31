"""Contestants in processes of their own, and what a result is written with."""
import json

import pytest
from profiling_scripts import script

process, record = script("peers.process"), script("jobs.record")


def test_environment_caps_every_pool(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    made = process.environment(2)
    assert "OPENBLAS_CORETYPE" not in made
    assert made["OPENBLAS_THREAD_TIMEOUT"] == process.OPENBLAS_SPIN
    assert made["OMP_NUM_THREADS"] == made["OPENBLAS_NUM_THREADS"] == made["MKL_NUM_THREADS"] == "2"
    assert "OMP_WAIT_POLICY" not in made and made["OMP_PROC_BIND"] == "close"
    monkeypatch.setattr(process, "wait_policy", "passive")
    assert process.environment(2)["OMP_WAIT_POLICY"] == "passive"


def test_peer_answers_and_survives_an_error():
    with process.Peer("peers/numpy/kernels.py", threads=1) as peer:
        with pytest.raises(process.PeerError, match="KeyError"):
            peer.ask("no such")
        assert peer.ask("prepare", kernel="no such", shape=[1], settings={"threads": 1}) is None
        made = peer.ask("prepare", kernel="linear_forward", shape=[8, 4, 4], settings={"threads": 1})
        assert made["digest"] > 0
        assert len(peer.ask("burst", repeats=3)) == 3


def test_a_dead_peer_is_an_error(tmp_path):
    dies = tmp_path / "dies.py"
    dies.write_text("raise SystemExit(3)\n")
    with process.Peer(str(dies), threads=1) as peer, pytest.raises(process.PeerError, match="code 3"):
        peer.ask("burst", repeats=1)


def test_an_interpreter_that_is_not_there_is_named():
    with pytest.raises(process.PeerError, match="no interpreter /nowhere/python"):
        process.Peer("peers/torch/steps.py", 1, "/nowhere/python")


def test_kernel_cases_agree_with_numpy():
    kernels = script("kernels")
    shapes = {"linear": (40, 24, 17), "block": (40, 2, 8), "attention": (2, 2, 20, 8), "head": (300, 16, 50),
              "grouped": (2, 6, 2, 20, 8), "window": (2, 6, 2, 20, 8, 7), "int8": (300, 256)}
    by_length = {1: (1000,), 2: (30, 24)}
    with process.Peer("peers/numpy/kernels.py", 1) as numpy, process.Peer("peers/cllm/kernels.py", 1) as ours:
        for kernel, cases in kernels.SHAPES.items():
            shape = next((one for name, one in shapes.items() if kernel.startswith(name)), by_length.get(len(cases[0])))
            digests = [peer.ask("prepare", kernel=kernel, shape=shape, settings={"threads": 1})["digest"]
                       for peer in (numpy, ours)]
            # What is rounded at random agrees as far as its mean does: 76 800 errors of half a step on codes of about 40.
            rel = 3e-4 if kernel == "int8_stochastic" else 1e-5
            assert digests[1] == pytest.approx(digests[0], rel=rel), kernel


def test_training_contestant():
    from cllm.models.gpt import ModelConfig

    with process.Peer("peers/cllm/steps.py", 1) as peer:
        model = script("jobs.models").told(ModelConfig.preset("tiny"))
        facts = peer.ask("make", model=model, batch_size=4, seq_len=16,
                         strategy="recompute@2", threads=1)
        assert facts["loss"] > 0 and facts["arena_bytes"] < facts["total_bytes"]
        parts, timeline = peer.ask("parts"), peer.ask("timeline")
        assert {kind for kind, _, _ in parts["operations"]} >= {"forward", "rebuild", "backward"}
        assert timeline["operations"] == [f"{kind} {name}" for kind, name, _ in parts["operations"]]
        assert [sum(one) for one in zip(*timeline["by_kind"].values(), strict=True)] == timeline["live_bytes"]
        assert max(timeline["live_bytes"]) <= facts["arena_bytes"]
        assert sum(nbytes for *_, nbytes in timeline["peak"]["alive"]) == max(timeline["live_bytes"])
        assert len(peer.ask("work")) == len(parts["operations"])
        assert peer.ask("watched_burst", repeats=1)["high_water_bytes"] == facts["arena_bytes"]
        # The same first step, where gradients pass away as soon as their parameter has moved.
        updating = peer.ask("make", model=model, batch_size=4, seq_len=16, strategy="recompute+update", threads=1)
        assert updating["loss"] == facts["loss"] and updating["total_bytes"] < facts["total_bytes"]
        assert peer.ask("watched_burst", repeats=1)["high_water_bytes"] == updating["arena_bytes"]


def test_result_is_complete_in_itself(tmp_path):
    path = record.write_result("speed", 1, {"rows": []}, tmp_path / "result.json")
    written = json.loads(path.read_text())
    assert {"script", "date", "machine", "commit", "threads", "rows"} <= set(written)
    assert written["machine"]["versions"]["flags"] is not None
    assert record.result_path("speed", ".json").parent == record.RESULTS


def test_json_keeps_lists_of_plain_values_on_a_line():
    data = {"a": [1, 2.5, None], "b": [["x [", "y\n ]", 3], [1], []], "c": {"d": ["{", "]"], "e": "×"}}
    text = record.json_text(data)
    assert json.loads(text) == data and "[1, 2.5, null]" in text and "×" in text
    assert len(text.splitlines()) < len(json.dumps(data, indent=1).splitlines())
