"""What a whole step adds to a schedule: when parameters move, how long gradients live, and windows on states."""
from dataclasses import replace
from math import prod

import pytest
from families import FAMILIES
from longer import always

from cllm.errors import PlanError
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.program.kinds import Kind
from cllm.program.workload import Workload
from cllm.schedule import updates
from cllm.schedule.build import build_schedule
from cllm.strategies import parse

NAMES = always(lambda name: list(FAMILIES).index(name) % 6 == 0, list(FAMILIES)[::3])


def schedule_of(family, strategy="cache", optimizer="adamw", **decided):
    program = FAMILIES[family].program
    work = Workload(FAMILIES[family].batch, FAMILIES[family].time, optimizer=optimizer, threads=1)
    plan = parse(strategy).decide(Ledger(program, work))
    return program, build_schedule(program, work, replace(plan, **decided), "step")


def touched(op):
    """Parameters that an operation reads or adds to, by the names in its method's signature."""
    if not op.kind.method:
        return {}
    flow = op.step.flow(op.kind) if op.kind in ("accumulate", "backward") else getattr(op.step.layer, op.kind.method + "_flow")
    named = {*flow.reads, *flow.writes}
    return {name: "d" + own in flow.writes for own, name in op.step.params.items()
            if own not in op.step.frozen and {own, "d" + own} & named}


@pytest.mark.parametrize("strategy", ["cache", "recompute", "every:2"])
@pytest.mark.parametrize("family", NAMES)
def test_a_parameter_moves_after_its_last_use_and_its_gradient_lives_from_the_first(family, strategy):
    program, schedule = schedule_of(family, strategy, update_in_backward=True)
    checked = next(i for i, op in enumerate(schedule.ops) if op.kind == Kind.CHECK_LOSS)
    assert all(op.step is not program.head for op in schedule.ops[checked + 1:] if not op.kind.once)
    for name in program.trained:
        mine = {kind: [i for i, op in enumerate(schedule.ops) if op.kind == kind and op.params == (name,)]
                for kind in (Kind.ZERO_GRADIENT, Kind.CLIP, Kind.UPDATE)}
        (zero,), (clip,), (update,) = mine.values()
        uses = [i for i, op in enumerate(schedule.ops) if name in touched(op)]
        adds = [i for i in uses if touched(schedule.ops[i])[name]]
        assert max([*uses, checked]) < clip < update
        assert not adds or zero == adds[0] - 1 - sum(op.kind == Kind.ZERO_GRADIENT for op in schedule.ops[zero + 1:adds[0]])
        buffer = schedule.buffers[dict(schedule.ops[update].reads)["gradient"]]
        assert (buffer.first, buffer.last, buffer.kind) == (zero, update, "weights")
        assert all(buffer.index in dict(schedule.ops[i].writes).values() for i in adds)


@pytest.mark.parametrize("decided", [dict(update_in_backward=True), dict(), dict(micro_batch=2)],
                         ids=["in backward", "kept", "cut"])
@pytest.mark.parametrize("family", NAMES)
def test_states_are_loaded_before_an_update_and_stored_after_it(family, decided, monkeypatch):
    monkeypatch.setattr(updates, "PIECE", 50)
    if "micro_batch" in decided and not FAMILIES[family].program.can_be_cut:
        pytest.skip("cannot be cut")
    program, schedule = schedule_of(family, states="disk:here", **decided)
    order = [Kind.LOAD_START, Kind.LOAD_WAIT, Kind.UPDATE, Kind.STORE_START, Kind.STORE_WAIT]
    covered = {name: [] for name in program.trained}
    for buffer in schedule.buffers:
        if buffer.kind == "states":
            mine = [(op.kind, i) for i, op in enumerate(schedule.ops)
                    if buffer.index in {b for _, b in (*op.reads, *op.writes)}]
            assert [kind for kind, _ in mine] == order
            assert (buffer.first, buffer.last) == (mine[0][1], mine[-1][1])
            update = schedule.ops[mine[2][1]]
            covered[update.params[0]].append(update.piece)
            assert buffer.nbytes >= 8 * (update.piece[1] - update.piece[0])
    for name, pieces in covered.items():
        size = prod(program.parameters[name].shape)
        assert pieces == [(start, min(start + 50, size)) for start in range(0, size, 50)]
    if schedule.n_micro > 1:  # what runs again for each micro-batch has nothing of what runs once
        assert not any(op.kind.once for op in schedule.ops[:schedule.epilogue])


def test_windows_overlap_with_work_and_not_with_more_than_a_few_of_each_other(monkeypatch):
    monkeypatch.setattr(updates, "PIECE", 50)
    _, schedule = schedule_of("full tied", states="disk:here", update_in_backward=True)
    windows = [b for b in schedule.buffers if b.kind == "states"]
    most = max(b.nbytes for b in windows)
    alive = [sum(b.nbytes for b in windows if b.first <= i <= b.last) for i in range(len(schedule.ops))]
    assert max(alive) <= (1 + updates.AHEAD + updates.BEHIND + 1) * most
    working = [b for b in windows if any(not op.kind.once for op in schedule.ops[b.first:b.last])]
    assert len(working) > len(windows) / 4
    assert schedule_of("full tied", optimizer="sgd", states="disk:here")[1].buffers == schedule_of(
        "full tied", optimizer="sgd")[1].buffers  # no states, no windows


def test_a_plan_that_updates_in_backward_takes_one_micro_batch():
    program, work = FAMILIES["full tied"].program, Workload(5, 6, threads=1)
    plan = parse("cache").decide(Ledger(program, work))
    with pytest.raises(PlanError, match="takes the whole batch as one micro-batch; got micro_batch=2. Keep gradients"):
        build_schedule(program, work, Plan(plan.children, 2, update_in_backward=True), "step")
    with pytest.raises(PlanError, match="must be True or False; got 1"):
        build_schedule(program, work, Plan(plan.children, update_in_backward=1), "step")
    for states in ("disk", "disk:", "tape", 3, None):
        with pytest.raises(PlanError, match=r"Plan\(states=...\): must be 'memory' or 'disk:DIR'"):
            build_schedule(program, work, Plan(plan.children, states=states), "step")


def test_the_table_of_kinds_says_what_operations_on_parameters_name():
    for family in list(FAMILIES)[:9:3]:
        for op in schedule_of(family, states="disk:here", update_in_backward=True)[1].ops:
            if op.kind.once:
                assert {n for n, _ in op.reads} <= {*op.kind.reads} and {n for n, _ in op.writes} <= {*op.kind.writes}
                assert op.name == (f"{op.kind} {op.params[0]}" if op.params else f"{op.kind} {op.step.name}")
