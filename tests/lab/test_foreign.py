"""Graphs that are no program of ours: ours go out and come back the same, others are planned, wrong ones are refused."""
import itertools
import json
from dataclasses import replace

import oracle
import pytest
from families import FAMILIES

import cllm
from cllm.lab import from_json, to_json
from cllm.lab.foreign import graph_of
from cllm.planning import decide, ledger_of
from cllm.plans.plan import Plan

CONFIG = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 3})


def chain(count=6):
    """Nodes one after the other, of unequal bytes and seconds."""
    nodes = [{"name": f"n{i}", "bytes": 640 * (1 + i % 3), "seconds": 0.1 * (1 + i % 2)} for i in range(count)]
    return {"graph": 1, "nodes": nodes, "edges": [[f"n{i}", f"n{i + 1}"] for i in range(count - 1)]}


@pytest.mark.parametrize("name", ["full tied", "crystalline", "llama", "gemma2", "mixer", "mine", "no blocks"])
def test_ours_come_back_with_the_same_bytes_and_seconds(name, tmp_path):
    family = FAMILIES[name]
    to_json(tmp_path / "graph.json", family.architecture, family.batch, family.time, num_threads=2)
    graph = from_json(tmp_path / "graph.json")
    ledger = ledger_of(family.architecture, family.batch, family.time, "none", num_threads=2)
    assert graph.program.n_blocks == family.architecture.program.n_blocks
    for strategy in ("cache", "recompute", "every:2", "binomial:1", "products", "knapsack:0.5"):
        ours, theirs = decide(strategy, ledger), graph.plan(strategy)
        assert graph.live_bytes(theirs) == max(ledger.build(ours)[1].arena.live_bytes)
        assert theirs.predicted_seconds == pytest.approx(ours.predicted_seconds, rel=1e-9)
    script = ledger.written_out(decide("sqrt", ledger))
    outputs = {step.output: step.name for step in family.architecture.program.steps}  # as graphs name them
    theirs = cllm.Script([(word, outputs.get(name, name)) for word, name in script.order])
    assert graph.live_bytes(graph.plan(theirs)) == max(ledger.build(Plan(script))[1].arena.live_bytes)


def test_a_chain_is_cut_everywhere_and_every_strategy_plans_it():
    graph = from_json(chain())
    assert graph.program.n_blocks == 5
    cache = graph.plan()
    limit = cache.total_bytes * 2 // 3
    for strategy in (f"rotor:{limit}", f"dtr:{limit}", f"checkmate:{limit}", f"budget:{limit}"):
        plan = graph.plan(strategy)
        assert plan.total_bytes <= limit and plan.predicted_seconds > cache.predicted_seconds
    best = graph.plan(f"checkmate:{limit}").predicted_seconds
    assert best <= min(graph.plan(f"{kind}:{limit}").predicted_seconds for kind in ("rotor", "dtr", "budget")) * (1 + 1e-9)
    assert cache.predicted_seconds == pytest.approx(3 * sum(node["seconds"] for node in chain()["nodes"]))
    assert cache.estimate.source == "seconds of the graph"


def test_branches_ends_and_what_only_backward_reads():
    """A diamond with two ends; `b` leaves what its own backward reads alone."""
    data = {"graph": 1, "nodes": [
        {"name": "a", "bytes": 64, "seconds": 1.0},
        {"name": "b", "bytes": 128, "seconds": 1.0, "reads": ["a"], "also": {"kept": 6400}, "scratch": 640,
         "backward": {"seconds": 3.0, "reads": ["b.kept"], "scratch": 64}},
        {"name": "c", "bytes": 64, "seconds": 1.0, "reads": ["a"], "backward": {"reads": ["c"]}},
        {"name": "d", "bytes": 64, "seconds": 1.0, "reads": ["b", "c"], "shares": {"passes": [0, 1]},
         "backward": {"reads": []}},
        {"name": "e", "bytes": 64, "seconds": 1.0, "reads": ["c"]}]}
    graph = from_json(data)
    assert [s.name for s in graph.program.steps][-2:] == ["all ends", "loss"]
    plan = graph.plan()
    assert plan.predicted_seconds == pytest.approx(5 + 2 + 3 + 2 + 2 + 2)
    assert graph.live_bytes(plan) >= 6400 + 64
    least = graph.plan("checkmate:7500")
    assert least.total_bytes <= 7500
    with pytest.raises(cllm.BudgetError):
        graph.plan("checkmate:5000")
    again = json.loads(json.dumps(data))
    assert from_json(again).plan() == plan


def test_a_graph_is_not_run():
    layer = from_json(chain()).program.steps[0].layer
    with pytest.raises(cllm.PlanError, match="only programs run"):
        layer.forward()


def changed(**more):
    return {**chain(2), **more}


def node(**more):
    return changed(nodes=[{"name": "n0", "bytes": 64, "seconds": 1.0, **more}], edges=[])


BAD = {
    "no graph": ({}, "graph format None"), "another format": (changed(graph=2), "graph format 2"), "no nodes": (
        changed(nodes=[], edges=[]), "no nodes"), "without bytes": (
        changed(nodes=[{"name": "a", "seconds": 1}], edges=[]), "no 'bytes'"), "without a name": (
        changed(nodes=[{"bytes": 1, "seconds": 1}], edges=[]), "no 'name'"), "a name twice": (
        changed(nodes=chain(1)["nodes"] * 2, edges=[]), "'n0' twice"), "an edge from nowhere": (
        changed(edges=[["m", "n1"]]), "n1 reads m"), "an edge to nowhere": (changed(edges=[["n0", "m"]]), "edges to m"),
    "an edge back": (changed(edges=[["n1", "n0"]]), "n0 reads n1"), "bytes below zero": (node(bytes=-1), "bytes of n0"),
    "half a byte": (node(bytes=0.5), "bytes of n0"), "seconds in words": (node(seconds="long"), "seconds|can't multiply"),
    "seconds without end": (node(seconds=float("inf")), "seconds of n0"),
    "backward of others": (node(backward={"reads": ["m"]}), "backward of n0 reads m"),
    "a loss in the middle": (changed(nodes=[{**n, "loss": n["name"] == "n0"} for n in chain(2)["nodes"]]),
                             "a loss that is not"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_graph_that_is_none_is_refused(what, tmp_path):
    data, match = BAD[what]
    with pytest.raises(cllm.PlanError, match=match):
        from_json(data)
    (tmp_path / "graph.json").write_text(json.dumps(data))
    with pytest.raises(cllm.PlanError, match="graph.json"):
        from_json(tmp_path / "graph.json")


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "text").write_text("graph!")
    for path in (tmp_path / "none", tmp_path / "text", tmp_path):
        with pytest.raises(cllm.PlanError, match="must be a graph of nodes"):
            from_json(path)


def test_deeper_and_larger_is_told_apart():
    base, larger = (graph_of(CONFIG, batch, 5, num_threads=1) for batch in (2, 4))
    assert len(graph_of(replace(CONFIG, n_layers=4), 2, 5, num_threads=1)["nodes"]) == len(base["nodes"]) + 10
    assert all(a["bytes"] <= b["bytes"] for a, b in zip(base["nodes"], larger["nodes"], strict=True)) and base != larger
    assert len({n["name"] for n in base["nodes"]}) == len(base["nodes"]) and list(itertools.islice(base, 1)) == ["graph"]
