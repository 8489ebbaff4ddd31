"""Plans as data: JSON there and back, foreign files, words."""
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cllm
from cllm.plans.plan import Plan
from cllm.plans.tree import WORDS, Cache, Compress, OnDisk, Recompute, Segment, Tape
from cllm.strategies import parse

CONFIG = cllm.ModelConfig(13, 6, 16, 2, 24, 9)
NAMES = ["cache", "cache:probs+logits", "recompute", "every:2", "sqrt", "binomial:3", "selective", "selective:norm", "bf16",
         "int8:sqrt", "spill:/somewhere", "cache@2", "bf16:selective@1", "recompute@3"]


def planned(strategy, **changes):
    return cllm.plan(CONFIG, 4, 8, strategy, num_threads=1, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_json_there_and_back(name, tmp_path):
    plan = planned(name)
    plan.to_json(tmp_path / "plan.json")
    back = Plan.from_json(tmp_path / "plan.json")
    assert back == plan and hash(back) == hash(plan) and back.exact == plan.exact and back.spills == plan.spills
    assert back.table() in plan.table()
    assert planned(back).arena_bytes == plan.arena_bytes
    with pytest.raises(cllm.PlanError, match="cllm.plan"):
        _ = back.arena_bytes


DECISIONS = st.sampled_from(list(WORDS.values()))
KEYS = st.text("abc.12", min_size=1, max_size=5)
TAPES = st.builds(Tape, st.integers(0, 9), st.dictionaries(KEYS, DECISIONS, max_size=3).map(lambda d: tuple(d.items())))
NODES = st.recursive(TAPES, lambda inner: st.builds(Segment, st.lists(inner, min_size=1, max_size=3).map(tuple), DECISIONS))


@given(st.builds(Plan, st.lists(NODES, max_size=4).map(tuple), st.none() | st.integers(1, 99), st.none() | st.integers(1, 99),
                 st.dictionaries(KEYS, DECISIONS, max_size=2).map(lambda d: tuple(d.items())), st.none() | st.just("/dir")))
def test_any_plan_survives_as_data(plan):
    back = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert back == plan
    assert [t.block for t in back.tapes()] == [t.block for t in plan.tapes()]
    assert plan.exact == (not any(isinstance(d, Compress) for d in plan.decisions()))
    assert plan.spills == any(isinstance(d, OnDisk) for d in plan.decisions())
    assert plan.table()


GOOD = Plan((Tape(0, (("ln1.y", Recompute()),)), Segment((Tape(1),)))).to_dict()
SCRIPT = {key: value for key, value in GOOD.items() if key != "children"}
FOREIGN = {
    "empty": "", "no JSON": "plan!", "a number": "3", "null": "null", "a list": "[]", "another object": "{}",
    "another format": json.dumps({**GOOD, "plan": 2}), "a version in words": json.dumps({**GOOD, "plan": "1"}),
    "no children": json.dumps({k: v for k, v in GOOD.items() if k != "children"}),
    "children of another kind": json.dumps({**GOOD, "children": [3]}), "children null": json.dumps({**GOOD, "children": None}),
    "an unknown word": json.dumps({**GOOD, "children": [{"block": 0, "decisions": {"ln1.y": "forget"}}]}),
    "decisions in a list": json.dumps({**GOOD, "children": [{"block": 0, "decisions": ["ln1.y"]}]}),
    "a word that is a list": json.dumps({**GOOD, "ends": {"a": ["cache"]}}), "ends in a list": json.dumps({**GOOD, "ends": []}),
    "a segment without input": json.dumps({**GOOD, "children": [{"children": []}]}),
    "a script beside a tree": json.dumps({**GOOD, "script": []}),
    "a script of numbers": json.dumps({**SCRIPT, "script": [[1]]}),
    "a script of words": json.dumps({**SCRIPT, "script": ["forward"]}), "a script null": json.dumps({**SCRIPT, "script": None}),
    "nested without end": "[" * 100_000, "half a file": json.dumps(GOOD)[:40],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_is_refused(what, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(FOREIGN[what])
    with pytest.raises(cllm.PlanError, match="Plan.to_json wrote") as caught:
        Plan.from_json(path)
    assert "plan.json" in caught.value.where


def test_a_missing_file_a_directory_and_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00" * 9)
    for path in (tmp_path / "none", tmp_path, tmp_path / "bytes"):
        with pytest.raises(cllm.PlanError, match="Plan.to_json wrote"):
            Plan.from_json(path)


@pytest.mark.parametrize("change", [{"micro_batch": "2"}, {"micro_batch": 9}, {"loss_rows": 0}, {"loss_rows": 1.5},
                                    {"ends": {"nobody": "cache"}}, {"children": []}, {"children": GOOD["children"]}])
def test_a_file_that_is_a_plan_but_for_another_model_is_refused_when_it_is_used(change, tmp_path):
    data = {**planned("selective").to_dict(), **change}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(cllm.PlanError):
        planned(Plan.from_json(tmp_path / "plan.json"))


def test_a_plan_of_another_workload_is_refused_and_a_bare_one_is_not():
    made = planned("sqrt")
    for other in (cllm.ModelConfig(13, 6, 32, 2, 24, 9), cllm.ModelConfig(14, 6, 16, 2, 24, 9)):
        with pytest.raises(cllm.PlanError):
            cllm.plan(other, 4, 8, made, num_threads=1)
    with pytest.raises(cllm.PlanError):
        cllm.plan(CONFIG, 3, 8, made, num_threads=1)
    assert cllm.plan(CONFIG, 3, 8, Plan(made.children), num_threads=1).arena_bytes > 0


@pytest.mark.parametrize("plan", [Plan([Tape(0)]), Plan((Tape(0, [("ln1.y", Recompute())]),)), Plan((Tape(0),), loss_rows=[3])],
                         ids=["children", "decisions", "loss_rows"])
def test_lists_where_tuples_must_be_are_refused(plan):
    with pytest.raises(cllm.PlanError):
        cllm.plan(cllm.ModelConfig(13, 1, 16, 2, 24, 9), 2, 9, plan)


def test_the_table_folds_blocks_that_are_treated_alike():
    assert planned("cache").table().splitlines()[:2] == ["micro-batch whole batch, loss rows automatic",
                                                         "blocks 0-5: cache everything"]
    lines = planned(cllm.PerBlock({0: cllm.Selective(("act",)), range(2, 4): cllm.EveryNth(2)})).table().splitlines()
    assert lines[1:6] == ["block 0: recompute mlp.act.y", "block 1: cache everything",
                          "segment of blocks 2-3, rebuilt from its input:", "  blocks 2-3: cache everything",
                          "blocks 4-5: cache everything"]
    assert lines[-1].startswith("arena ") and "predicted" in lines[-1]


def test_the_table_names_what_is_kept_narrow_or_elsewhere():
    plan = Plan((Tape(0, (("ln1.y", OnDisk()), ("ln2.y", Compress("int8")), ("mlp.act.y", Compress("int8")))),
                 Segment((Tape(1),), Compress())), 2, 5, (("head.logits", Cache()),))
    assert plan.table().splitlines() == [
        "micro-batch 2, loss rows 5", "block 0: spill ln1.y; int8 ln2.y, mlp.act.y",
        "segment of blocks 1-1, rebuilt from its input (bfloat16):", "  block 1: cache everything", "head.logits: cache"]


def test_plans_explain_themselves_to_each_other():
    cache, selective = planned("cache"), planned("selective@2")
    lines = cache.explain(selective).splitlines()
    assert "micro-batch: whole batch -> 2" in lines and any("ln1.y: cache -> recompute" in line for line in lines)
    assert lines[-1].startswith("in all: -")
    assert cache.explain(cache).splitlines()[0] == "the plans decide the same"
    assert "segment" in planned("cache").explain(planned("sqrt"))


def test_optional_values_and_those_outside_blocks_are_explained_too():
    cache = planned("cache")
    assert "head.logits: default -> cache" in cache.explain(planned("cache:logits")).splitlines()
    assert "blocks 0-5 attn.probs: default -> cache" in cache.explain(planned("cache:probs")).splitlines()
    assert "blocks 0-5 attn.probs: cache -> default" in planned("cache:probs").explain(cache).splitlines()
    assert "directory of spilled values: none -> /dir" in cache.explain(planned("spill:/dir")).splitlines()


def test_segments_know_their_blocks_however_deep_they_are():
    """Asking both ends of each level again would take 2^200 questions."""
    node = Tape(3)
    for _ in range(200):
        node = Segment((node,))
    assert node.blocks == range(3, 4) and Segment((node, Tape(4))).blocks == range(3, 5)


@pytest.mark.parametrize("block", [1.0, True, "1", None])
def test_blocks_are_whole_numbers(block):
    with pytest.raises(cllm.PlanError):
        planned(Plan((Tape(0), Tape(block), *(Tape(b) for b in range(2, 6)))))


def test_what_a_plan_costs_is_not_what_it_is():
    assert planned("cache") == planned("cache", optimizer="sgd") and planned("cache") != planned("sqrt")
    assert planned("cache").total_bytes > planned("cache", optimizer="sgd").total_bytes


@pytest.mark.parametrize("name", ["", "nonsense", "every", "every:", "every:x", "every:0", "binomial:-1", "cache:nonsense",
                                  "recompute:3", "sqrt:1", "cache@", "cache@x", "cache@0", "cache@99", "budget:", "budget:x",
                                  "budget:1GB@2", "bf16:nonsense", "int8:every:0", "selective:nonsense", "spill:",
                                  "@", ":", "@2"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(cllm.CllmError):
        planned(name)


@pytest.mark.parametrize("name, strategy", [
    ("every:3", cllm.EveryNth(3)), ("cache@2", cllm.CacheAll(micro_batch=2)), ("selective:norm+act@1",
                                                                            cllm.Selective(("norm", "act"), 1)),
    ("bf16", cllm.Compressed()), ("int8:every:2", cllm.Compressed("int8", base=cllm.EveryNth(2))),
    ("spill:/a/b", cllm.Spill("/a/b")), ("spill:user@host/dir", cllm.Spill("user@host/dir")),
    ("spill:a@b@3", cllm.Spill("a@b", micro_batch=3)), ("budget:5000000", cllm.MemoryBudget(5_000_000)),
    ("budget:1GB", cllm.MemoryBudget("1GB"))])
def test_names_of_strategies(name, strategy):
    assert parse(name) == strategy


def mutations(data, rng):
    """The data with something changed at a place drawn from a generator."""
    if isinstance(data, (dict, list)) and data and rng.random() < 0.8:
        data = dict(data) if isinstance(data, dict) else list(data)
        key = list(data)[rng.integers(len(data))] if isinstance(data, dict) else int(rng.integers(len(data)))
        if rng.random() < 0.15:
            del data[key]
        elif isinstance(data, dict) and rng.random() < 0.15:
            data[f"{key}?"] = data.pop(key)
        else:
            data[key] = mutations(data[key], rng)
        return data
    strange = [None, True, -1, 0, 3, 10**30, 1.5, float("nan"), "", "cache", "x" * 300, [], {}, [data], {"block": data},
               np.array([1, 2]), np.float32(1), b"bytes", {"children": [], "input": "cache"}, object()]
    return strange[rng.integers(len(strange))]


def test_mutated_data_is_a_plan_or_refused():
    """Whatever is changed: what from_dict takes is a plan that can be used or is refused in turn, each by a PlanError."""
    rng, outcomes = np.random.default_rng(3), set()
    originals = [planned(name).to_dict() for name in ("cache:probs+logits", "binomial:2", "bf16:sqrt", "selective@2")]
    for trial in range(1500):
        data = mutations(originals[trial % 4], rng)
        try:
            plan = Plan.from_dict(data)
        except cllm.PlanError as error:
            assert "must be what Plan.to_dict gave" in str(error)
            outcomes.add("refused")
            continue
        try:
            outcomes.add(planned(plan).exact)
        except cllm.PlanError:
            outcomes.add("does not fit")
    assert outcomes == {"refused", "does not fit", True, False}


@pytest.mark.parametrize("plan", [
    Plan((Tape(0, (("ln1.y",),)),)), Plan((Tape(0, ("ab",)),)), Plan((Tape(0, ((1, Recompute()),)),)), Plan((Tape(0),), ends=3),
    Plan((Tape(0),), ends=(("head.logits",),)), Plan((Tape(0, (("ln1.y", np.array([1, 2])),)),)),
    Plan((Tape(0, (("ln1.y", OnDisk()),)),), spill_directory=5), Plan((Tape(0),), micro_batch=np.array([1, 2]))], ids=range(8))
def test_a_plan_of_ones_own_with_a_slip_in_it_is_refused(plan):
    with pytest.raises(cllm.PlanError):
        cllm.plan(cllm.ModelConfig(13, 1, 16, 2, 24, 9), 2, 9, plan)
