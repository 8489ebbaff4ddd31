"""Law 16: bits depend on the number of groups, and on it as they are said to: a group's gradient is a chain from zero, groups
are added in the order of a binary tree, and their sum is added to the buffer last.

The reference knows nothing of groups: it is the whole batch with the targets of all other groups ignored, and a tree in NumPy.
"""
from dataclasses import replace

import numpy as np
import oracle
import pytest
from families import FAMILIES
from longer import whole

import cllm
from cllm.errors import ConfigError, PlanError
from cllm.executor import executor as executors
from cllm.program.workload import Workload

BATCH = 8
SEED = 5
SOME = ["full tied dropout", "lattice untied dropout, no out_proj", "crystalline", "qwen3", "gpt with adapters",
        "packed, fixed positions, dropout", "in bfloat16", "longer than a tile", "mixture"]
CUTS = [(None, 1), (1, 2), (2, 1), (1, 1)]
STRATEGIES = [cllm.CacheAll(), cllm.RecomputeAll(), cllm.EveryNth(2), cllm.Selective()]
WAYS = [{}, dict(states="disk")]


def tree(parts):
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def executor_of(family, model, batch=BATCH, **settings):
    return cllm.Executor(model, batch, family.time, seed=SEED, packed=family.packed, **{"num_threads": 1, **settings})


def by_definition(family, groups, feeds, before):
    """Loss, and gradients added to those before, each group's from a whole batch in which its targets alone count."""
    model = family.model()
    ex, size = executor_of(family, model), BATCH // groups
    count, losses, gradients = int((feeds["targets"] != -1).sum()), [], []
    for number in range(groups):
        targets = np.full_like(feeds["targets"], -1)
        rows = slice(number * size * (len(targets) // BATCH), (number + 1) * size * (len(targets) // BATCH))
        targets[rows] = feeds["targets"][rows]
        model.zero_grad()
        ex.step = 0
        losses.append(ex.loss_and_grad(**{**feeds, "targets": targets}, num_targets=count))
        gradients.append({name: gradient.copy() for name, gradient in model.gradients.items()})
    return tree(losses), {name: before[name] + tree([one[name] for one in gradients]) for name in before}


@pytest.mark.parametrize("name", SOME)
def test_groups_are_chains_from_zero_added_in_a_tree(name, monkeypatch):
    monkeypatch.setattr(executors, "DEBUG", True)
    family = FAMILIES[name]
    feeds = family.draw(3, BATCH)
    for turn, groups in ((turn, 2 << (SOME.index(name) + turn) % 3) for turn in (0, 1)):
        rng = np.random.default_rng(turn)
        before = {n: rng.normal(size=g.shape).astype(g.dtype) for n, g in family.model().gradients.items()}
        loss, expected = by_definition(family, groups, feeds, before)
        for number, (micro, threads) in enumerate(CUTS):
            if micro and micro > BATCH // groups:
                continue
            model = family.model()
            strategy = replace(STRATEGIES[(turn + number) % 4], micro_batch=micro)
            ex = executor_of(family, model, groups=groups, strategy=strategy, num_threads=threads)
            for n, g in model.gradients.items():
                g[...] = before[n]
            found = ex.loss_and_grad(**feeds)
            about = f"{groups} groups, micro-batch {micro}, {threads} threads, {strategy}: "
            assert found == pytest.approx(loss, rel=1e-12)
            oracle.assert_same_bits(dict(model.gradients), expected, about)
            assert ex.high_water_bytes == ex.memory.arena_bytes == ex.plan.arena_bytes
            assert ex.memory.gradient_bytes == sum(g.nbytes for g in model.gradients.values())


def steps(family, groups, whole, strategy, threads, states=None):
    """Losses, norms and weights of three clipped steps, and the loss of another batch."""
    model = family.model()
    ex = executor_of(family, model, groups=groups, strategy=strategy, num_threads=threads, states=states)
    optimizer, seen = cllm.AdamW(model, lr=1e-2), []
    for step in range(3):
        feeds = family.draw(step, BATCH)
        if whole:
            seen += [ex.train_step(**feeds, optimizer=optimizer, clip_norm=0.5), ex.grad_norm]
        else:
            model.zero_grad()
            seen += [ex.loss_and_grad(**feeds), cllm.clip_grad_norm(model, 0.5)]
            optimizer.step()
        assert ex.high_water_bytes == ex.memory.arena_bytes
    return {"seen": [*seen, ex.loss(**family.draw(9, BATCH))], "weights": dict(model.parameters)}


@pytest.mark.parametrize("groups", [1, whole(2), 4, whole(8)])
def test_whole_steps_depend_on_the_number_of_groups_alone(groups, tmp_path):
    for number, name in enumerate(["full tied dropout", "llama with adapters", "mixer", "rows of every kind"]):
        family, reference = FAMILIES[name], None
        for turn, (micro, threads) in enumerate(CUTS):
            strategy = replace(STRATEGIES[(turn + number) % 4], micro_batch=micro and min(micro, BATCH // groups))
            found = steps(family, groups, turn > 0, strategy, threads, f"disk:{tmp_path}" if turn == 2 else None)
            reference = reference or found
            oracle.assert_same_bits(found, reference, f"{name}, {strategy}: ")
        if groups > 1:
            with pytest.raises(AssertionError):
                oracle.assert_same_bits(reference, steps(family, 1, False, cllm.CacheAll(), 1))


def test_a_partial_sum_a_level_and_no_more():
    """Where a group is one micro-batch its gradient is in the arena while it is needed, and a sum a level beside it; where it
    is cut, its gradient is there to the end."""
    family = FAMILIES["full untied relu"]
    arrays = [parameter for parameter in family.model().parameters.values()]
    padded = sum(-(-array.nbytes // 64) * 64 for array in arrays)
    for groups in (2, 4, 8):
        for micro in (1, None) if groups < 8 else (None,):
            ex = executor_of(family, family.model(), groups=groups, strategy=cllm.CacheAll(micro_batch=micro))
            kinds = ex.memory.timeline_by_kind()
            assert set(kinds["partial"]) == {padded * (groups.bit_length() - 1)}
            assert max(kinds["weights"]) == padded if micro else max(kinds["weights"]) < padded


def test_a_budget_is_kept_with_groups():
    architecture = FAMILIES["full tied"].architecture
    with pytest.raises(cllm.BudgetError) as error:
        cllm.plan(architecture, BATCH, 6, cllm.MemoryBudget(10), groups=4)
    least = cllm.plan(architecture, BATCH, 6, cllm.MemoryBudget(error.value.least), groups=4)
    assert least.total_bytes == error.value.least
    assert not least.update_in_backward and least.micro_batch <= 2
    for limit in (error.value.least + 1000, 10**6):
        assert least.total_bytes <= cllm.plan(architecture, BATCH, 6, cllm.MemoryBudget(limit), groups=4).total_bytes <= limit
    ex = cllm.Executor(cllm.Model(architecture), BATCH, 6, least, groups=4)
    assert ex.memory.total_bytes == least.total_bytes
    with pytest.raises(PlanError, match="must be a plan made for this model and batch"):
        cllm.Executor(cllm.Model(architecture), BATCH, 6, least, groups=2)
    assert cllm.plan(architecture, BATCH, 6, groups=1).fingerprint == cllm.plan(architecture, BATCH, 6).fingerprint


def test_what_no_groups_can_be_is_refused():
    architecture = FAMILIES["full tied"].architecture
    for batch, groups in ((8, 3), (6, 4), (8, 0), (8, 16), (8, "two"), (8, True)):
        with pytest.raises(ConfigError, match="^groups"):
            cllm.plan(architecture, batch, 6, groups=groups)
    with pytest.raises(ConfigError, match="groups: must be a power of two that divides batch_size = 6; got 4. Take fewer"):
        cllm.plan(architecture, 6, 6, groups=4)
    with pytest.raises(ConfigError, match="processes: must be a power of two that divides groups = 2; got 4. Take fewer"):
        cllm.plan(architecture, 8, 6, groups=2, processes=4)
    for kind in ("adafactor", "*emb.weight=adafactor,adamw8bit"):
        with pytest.raises(ConfigError, match="optimizer: must keep no means of rows and columns where several processes"):
            Workload(4, 8, optimizer=kind, groups=2, processes=2)
    with pytest.raises(PlanError, match="takes the whole batch as one group; got groups=2. Keep gradients, or take groups=1"):
        cllm.plan(architecture, 8, 6, groups=2, update_in_backward=True)
    with pytest.raises(PlanError, match="must be 'memory' where several processes share them; got 'disk:.'. Keep them"):
        cllm.plan(architecture, 8, 6, groups=2, processes=2, states="disk:.")
    with pytest.raises(PlanError, match="must be None or a whole number from 1 to 2"):
        cllm.plan(architecture, 8, 6, cllm.CacheAll(micro_batch=4), groups=4)
