"""One frontier over a whole step: what a budget decides of gradients, states and what goes to disk."""
import pickle
from dataclasses import replace

import numpy as np
import oracle
import pytest
from families import FAMILIES
from longer import always, whole

import cllm
from cllm.errors import BudgetError, ConfigError, SpillError
from cllm.planner import disks
from cllm.planning import decide, ledger_of, pareto
from cllm.strategies import whole_step
from cllm.strategies.memory_budget import ALLOWED
from cllm.strategies.whole_step import WHOLE_STEP, whole_steps

CONFIG = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 3})
B, T = 4, 6
ALL = (*ALLOWED, *WHOLE_STEP)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer plans of activations are tried with each way: planning takes most of these tests' time."""
    monkeypatch.setattr(whole_step, "MOST", ((1 << 62, 6),))


@pytest.fixture
def disk(tmp_path):
    if disks.file_system(tmp_path) in disks.MEMORY_BACKED:
        pytest.skip("needs a directory on a disk")
    return str(tmp_path)


def ledger(clip_by=None, optimizer="adamw", architecture=CONFIG, **more):
    return ledger_of(architecture, B, T, optimizer, num_threads=1, clip_by=clip_by, **more)


@pytest.mark.parametrize("clip_by", [None, "all", "each"])
def test_more_memory_is_never_slower_and_every_limit_is_kept_or_refused_with_the_least_that_works(clip_by, disk):
    found = ledger(clip_by)
    points = whole_steps(found, ALL, disk)
    assert all(a.nbytes < b.nbytes and a.seconds > b.seconds for a, b in zip(points, points[1:], strict=False))
    least = points[0].nbytes
    with pytest.raises(BudgetError) as caught:
        cllm.MemoryBudget(1000, ALL, directory=disk).decide(found)
    assert type(caught.value.least) is int and caught.value.least <= least
    assert f"{caught.value.least:,} bytes" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).least == caught.value.least
    with pytest.raises(BudgetError):
        cllm.MemoryBudget(caught.value.least - 1, ALL, directory=disk).decide(found)
    before = np.inf
    for limit in np.linspace(caught.value.least, 1.1 * points[-1].nbytes, 60):
        plan = decide(cllm.MemoryBudget(int(limit), ALL, directory=disk), found)
        classic = None
        try:
            classic = decide(cllm.MemoryBudget(int(limit)), found)
        except BudgetError:
            pass
        assert plan.total_bytes <= limit and plan.predicted_seconds <= before
        assert classic is None or plan.predicted_seconds <= classic.predicted_seconds
        before = plan.predicted_seconds


def test_each_word_of_allow_lowers_the_least_and_alone_decides(disk):
    def least(*allow):
        with pytest.raises(BudgetError) as caught:
            cllm.MemoryBudget(1, allow, directory=disk).decide(ledger())
        return caught.value.least

    plain = least(*ALLOWED)
    assert plain == cllm.plan(CONFIG, B, T, cllm.MemoryBudget(plain), num_threads=1).total_bytes
    backward, states = least(*ALLOWED, "update_in_backward"), least(*ALLOWED, "spill_states")
    assert least(*ALL) <= min(backward, states) < max(backward, states) < plain
    for allow, in_backward, on_disk, spills in (
            ((*ALLOWED, "update_in_backward"), {True, False}, {False}, {False}),
            ((*ALLOWED, "spill_states"), {False}, {True, False}, {False}),
            ((*ALLOWED, "spill"), {False}, {False}, {True, False}), (ALL, {True, False}, {True, False}, {True, False})):
        plans = [point.plan for point in whole_steps(ledger(), allow, disk)]
        assert {plan.update_in_backward for plan in plans} <= in_backward and {plan.states_on_disk for plan in plans} <= on_disk
        assert {plan.spills for plan in plans} <= spills and len(plans) > 1
        assert all(plan.micro_batch in (None, B) for plan in plans if plan.update_in_backward)


@pytest.mark.parametrize("allow, states, in_backward", [
    (ALLOWED, "memory", False), (ALL, "memory", False), (ALL, None, True), (ALL, "disk", None), (ALLOWED, "disk", True),
    (ALL, "disk", True), whole(ALLOWED, None, True), whole(ALLOWED, "disk", None)],
    ids=lambda v: str(len(v) if isinstance(v, tuple) else v))
def test_what_the_caller_decides_stays_so_and_the_rest_is_planned(allow, states, in_backward, disk):
    asked = {"states": f"disk:{disk}" if states == "disk" else states, "update_in_backward": in_backward}
    asked = {name: value for name, value in asked.items() if value is not None}
    with pytest.raises(BudgetError) as caught:
        cllm.plan(CONFIG, B, T, cllm.MemoryBudget(1, allow, directory=disk), num_threads=1, **asked)
    plan = cllm.plan(CONFIG, B, T, cllm.MemoryBudget(caught.value.least, allow, directory=disk), num_threads=1, **asked)
    assert {name: getattr(plan, name) for name in asked} == asked and plan.total_bytes <= caught.value.least


def test_a_second_backward_is_weighed_and_said():
    wanted = dict(update_in_backward=True, num_threads=1)
    once, twice, each = (cllm.plan(CONFIG, B, T, "cache", clip_by=clip, **wanted) for clip in (None, "all", "each"))
    assert once.total_bytes == twice.total_bytes == each.total_bytes
    assert once.predicted_seconds == each.predicted_seconds < twice.predicted_seconds < 2 * once.predicted_seconds
    assert "a backward before is for the norm of all gradients" in twice.table()
    assert "norm" not in once.table() + each.table()


def test_directories_in_memory_are_refused_where_named_and_done_without_where_not(disk, monkeypatch):
    with pytest.raises(SpillError, match=r"MemoryBudget\(directory=...\): must be a directory; got none there"):
        cllm.plan(CONFIG, B, T, cllm.MemoryBudget("1GB", ALL, directory=f"{disk}/none"), num_threads=1)
    monkeypatch.setenv("CLLM_SPILL_DIR", disk)
    assert any(point.plan.states == f"disk:{disk}" for point in whole_steps(ledger(), ALL, None))
    monkeypatch.delenv("CLLM_SPILL_DIR")
    monkeypatch.chdir(disk)
    assert any(point.plan.states == "disk:." for point in whole_steps(ledger(), ALL, None))
    monkeypatch.setattr(disks, "file_system", lambda path: "tmpfs")
    with pytest.raises(SpillError, match=r"must be on a disk; got a file system in memory \(tmpfs\)"):
        cllm.plan(CONFIG, B, T, cllm.MemoryBudget("1GB", ALL, directory=disk), num_threads=1)
    assert not any(point.disk_bytes for point in whole_steps(ledger(), ALL, None))
    with pytest.raises(BudgetError, match=r"name a directory on a disk \(CLLM_SPILL_DIR\)"):
        cllm.plan(CONFIG, B, T, cllm.MemoryBudget("1KB", ALL), num_threads=1)
    for directory in ("", 3):
        with pytest.raises(ConfigError, match=r"MemoryBudget\(directory=...\): must name a directory, or be None"):
            cllm.MemoryBudget("1GB", directory=directory)


def test_plans_that_a_disk_has_no_room_for_are_left_out(disk, monkeypatch):
    found = ledger()
    states = next(p.disk_bytes for p in whole_steps(found, (*ALLOWED, "spill_states"), disk) if p.disk_bytes)
    usage = whole_step.disk_usage(disk)
    for free, there in ((states, True), (states - 1, False)):
        monkeypatch.setattr(whole_step, "disk_usage", lambda path, free=free: usage._replace(free=free + disks.SPARE_BYTES))
        assert any(p.disk_bytes for p in whole_steps(found, (*ALLOWED, "spill_states"), disk)) == there


@pytest.mark.parametrize("name", always(lambda name: list(FAMILIES).index(name) % 12 == 0, list(FAMILIES)[::6]))
def test_every_point_trains_to_the_same_bits_within_its_bytes(name, disk):
    family = FAMILIES[name]
    made = ledger_of(family.model(), family.batch, family.time, num_threads=2, packed=family.packed)
    points = whole_steps(made, ALL, disk)
    seen = set()
    for point in points[::max(1, len(points) // 4)]:
        model = family.model()
        ex = family.executor(model, point.plan)
        assert ex.memory.total_bytes == point.nbytes and ex.memory.disk_bytes == point.disk_bytes
        loss = ex.train_step(**family.draw(), optimizer=cllm.AdamW(model, lr=1e-2))
        assert ex.high_water_bytes == ex.memory.arena_bytes
        seen.add((loss, b"".join(p.tobytes() for p in model.parameters.values())))
    assert len(seen) == 1


def test_the_parts_are_the_whole(disk):
    on_disk = dict(states=f"disk:{disk}")
    for way in ({}, dict(update_in_backward=True), on_disk, dict(on_disk, update_in_backward=True)):
        for strategy in ("cache", "recompute", f"spill:{disk}"):
            model = cllm.GPT(CONFIG)
            memory = cllm.Executor(model, B, T, strategy, num_threads=1, **way).memory
            parts = {what: (inside, outside) for what, inside, outside in memory.parts()}
            assert sum(inside for inside, _ in parts.values()) == memory.total_bytes
            assert sum(outside for _, outside in parts.values()) == memory.disk_bytes
            held = sum(p.nbytes for p in model.parameters.values())
            assert parts["weights"] == (held, 0) and parts["states"][1] == (2 * held if "states" in way else 0)
            assert (parts["gradients"][0] >= held) != ("update_in_backward" in way)
            assert bool(parts["activations"][1]) == strategy.startswith("spill")


def test_the_curve_of_a_whole_step(disk):
    plans = pareto(CONFIG, B, T, num_threads=1, allow=ALL, directory=disk, most=10)
    assert len(plans) == 10 and any(plan.update_in_backward for plan in plans) and any(plan.states_on_disk for plan in plans)
    assert all(replace(a, estimate=None) != b and a.total_bytes < b.total_bytes for a, b in zip(plans, plans[1:], strict=False))
