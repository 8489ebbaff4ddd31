"""Laws of freezing: what is frozen keeps its bits, gradients of what is trained are those of the whole run to the last bit,
and the peak is exact, in every family, for drawn sets of parameters, strategies, cuts and threads."""
from dataclasses import dataclass, replace

import numpy as np
import pytest
from families import CUTS, FAMILIES, STRATEGIES, fitting

import cllm
from cllm.program.kinds import Kind
from cllm.testing import assert_peak_bytes


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_as_if_all_were(name):
    family, number = replace(FAMILIES[name], trainable=None), list(FAMILIES).index(name)
    rng, names = np.random.default_rng(number), list(family.program.parameters)
    whole = family.model()
    loss = family.executor(whole).loss_and_grad(**family.draw())
    for size, offset in ((1, 0), (-(-len(names) // 2), 7)):
        mine = replace(family, trainable=tuple(sorted(rng.choice(names, size, replace=False).tolist())))
        strategy = list(STRATEGIES.values())[(3 * number + offset) % len(STRATEGIES)]
        micro_batch, threads = CUTS[(number + offset) % len(CUTS)]
        model = mine.model()
        before = {n: parameter.copy() for n, parameter in model.parameters.items()}
        strategy = replace(fitting(strategy, mine) or cllm.CacheAll(), micro_batch=micro_batch and min(micro_batch, mine.batch))
        executor = mine.executor(model, strategy, num_threads=threads)
        assert executor.loss_and_grad(**mine.draw()) == loss
        assert_peak_bytes(executor)
        assert set(model.gradients) == set(mine.trainable)
        for n, gradient in model.gradients.items():
            assert gradient.tobytes() == whole.gradients[n].tobytes(), n
        cllm.AdamW(model, lr=1e-2).step()
        for n, parameter in model.parameters.items():
            assert n in mine.trainable or parameter.tobytes() == before[n].tobytes(), n


def blocks_of(trainable, strategy="cache", **changes):
    """Operations and memory of LLaMA blocks of which some parameters are trained."""
    family = replace(FAMILIES["llama"], architecture=replace(FAMILIES["llama"].architecture, **changes))
    model = cllm.Model(family.architecture, trainable=trainable)
    return family.executor(model, strategy)


def test_backward_stops_below_the_first_trained_step():
    executor = blocks_of("blocks.1.mlp.fc1.weight")
    ops = [(op.kind, op.step.name) for op in executor.schedule.ops]
    assert {name for kind, name in ops if kind == Kind.ACCUMULATE} == {"blocks.1.mlp.fc1"}
    backward = [name for kind, name in ops if kind == Kind.BACKWARD]
    assert "blocks.1.mlp.fc1" not in backward and "blocks.1.mlp.act" in backward and backward[0] == "head"
    assert not [name for name in backward if name.startswith("blocks.0") or ".ln" in name and "blocks.1" in name]


def test_what_only_frozen_gradients_read_is_not_kept():
    """A frozen product keeps no input, a bias needs none; a norm and a gate keep what the gradient below needs."""
    readers = cllm.Model(FAMILIES["full tied"].architecture, trainable="blocks.0.*").program.readers
    assert readers["blocks.0.ln1.y"] and not readers["blocks.2.ln1.y"] and not readers["blocks.2.mlp.act.y"]
    assert readers["blocks.2.mlp.fc1.y"] and readers["blocks.2.res1.y"]
    biases = cllm.Model(FAMILIES["full tied"].architecture, trainable="*.bias").program.readers
    assert not biases["blocks.2.ln1.y"] and not biases["blocks.2.mlp.act.y"] and biases["blocks.2.mlp.fc1.y"]
    whole, some = (cllm.plan(FAMILIES["llama"].architecture, 40, 6, trainable=trained) for trained in (None, "blocks.2.*"))
    assert some.arena_bytes < 0.8 * whole.arena_bytes


def test_counts_are_those_of_what_is_trained():
    whole, some = blocks_of(None).memory, blocks_of("*.ln2.weight").memory
    assert some.parameter_bytes == whole.parameter_bytes == whole.gradient_bytes
    assert some.gradient_bytes == 3 * 8 * 4 and some.optimizer_bytes == 2 * some.gradient_bytes
    assert whole.total_bytes - some.total_bytes == (whole.arena_bytes - some.arena_bytes
                                                    + 3 * (whole.gradient_bytes - some.gradient_bytes))


def test_a_frozen_model_has_another_fingerprint_and_costs_less():
    architecture = FAMILIES["llama"].architecture
    plans = [cllm.plan(architecture, 5, 6, trainable=trainable) for trainable in (None, "*", "*.fc1.*", "*.fc2.*")]
    assert plans[0].fingerprint == plans[1].fingerprint and len({plan.fingerprint for plan in plans}) == 3
    assert plans[0].predicted_seconds > plans[2].predicted_seconds and plans[0].total_bytes > plans[2].total_bytes
    with pytest.raises(cllm.PlanError, match="one for another"):
        cllm.Executor(cllm.Model(architecture, trainable="*.fc2.*"), 5, 6, strategy=plans[2])


def test_a_head_alone_makes_no_gradient_of_its_input():
    executor = blocks_of("head.weight")
    backward = [op for op in executor.schedule.ops if op.kind == Kind.BACKWARD]
    assert [op.step.name for op in backward] == ["head"] and "dx" not in dict(backward[0].writes)


SEEN = []


@dataclass(frozen=True)
class Counted(cllm.Layer):
    """y = x + weight; spares nothing, and tells what its gradient held."""

    C: int
    sites = (cllm.Site("y", "N C", "the sum"),)
    params = (cllm.Param("weight", "C"),)
    in_order = True

    def forward(self, x, weight, *, y):
        np.add(x, weight, out=y)

    def backward(self, dy, *, dx, dweight):
        SEEN.append(dweight.copy())
        for row in dy:
            dweight += row
        dx[...] = dy


@dataclass(frozen=True)
class Summed(cllm.Architecture):
    vocab_size: int = 13
    max_seq_len: int = 9

    def wire(self, w):
        x = w.add("embed", cllm.layers.Embedding(V=13, C=8, P=9, std=0.5))
        x = w.add("sum", Counted(C=8), x=x)
        w.add("head", cllm.layers.CrossEntropyHead(V=13, C=8, std=0.5), x=x)


def test_a_layer_that_spares_nothing_adds_to_zeros_in_the_arena():
    """In each micro-batch: what it makes of garbage would be no harm, but a warning of NumPy's."""
    for trainable, zero in (("embed.*", True), (None, False)):
        SEEN.clear()
        executor = cllm.Executor(cllm.Model(Summed(), trainable=trainable), 4, 6, strategy=cllm.CacheAll(micro_batch=2))
        executor.loss_and_grad(*np.random.default_rng(0).integers(0, 13, (2, 4, 6)))
        assert len(SEEN) == 2 and not SEEN[0].any() and SEEN[1].any() != zero
        assert_peak_bytes(executor)
