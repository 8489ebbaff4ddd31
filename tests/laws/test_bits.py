"""Laws 3, 4 and 5: bits of loss, gradients and weights depend on no lossless plan, no micro-batch and no thread count, and
each step writes up to the predicted peak.

A few clipped AdamW steps of a family under a strategy are held against the same steps under CacheAll on one thread: the
pairs that `pairs` picks, with the cut of the batch, number of threads and dtype that `cells` does; with --whole all of them.
"""
import dataclasses
import functools
from itertools import product

import numpy as np
import oracle
import pytest
from families import CELLS, CUTS, DTYPES, FAMILIES, SOLVED, STRATEGIES, cells, fitting, kinds, pairs
from longer import examples

import cllm
from cllm.models.families import FAMILIES as BUILT_IN


@functools.cache
def reference(family, dtype):
    """The run under CacheAll on one thread, made once for each family and dtype."""
    return FAMILIES[family].train(cllm.CacheAll(), dtype)


def pytest_generate_tests(metafunc):
    if "strategy" in metafunc.fixturenames:
        metafunc.parametrize("family, strategy", pairs(metafunc.config.getoption("whole")))


def test_bits_depend_on_no_plan_no_cut_and_no_thread_count(family, strategy, pytestconfig):
    chosen = fitting(STRATEGIES[strategy], FAMILIES[family])
    for dtype, (micro_batch, num_threads) in cells(family, strategy, pytestconfig.getoption("whole")):
        got = FAMILIES[family].train(chosen, dtype, micro_batch, num_threads)
        oracle.assert_same_bits(got, reference(family, dtype), f"{dtype}, micro_batch={micro_batch}, threads={num_threads}: ")


def test_the_chosen_cells_cover_all_pairs():
    """Every kind of layer with every strategy that fits a family of it; every family with every dtype and every cut; every
    strategy with every cut in every dtype. Of the whole product no pair is left out that fits."""
    met = {(f, s, dtype, cut) for f, s in pairs(whole=False) for dtype, cut in cells(f, s, whole=False)}
    assert {(f, dtype) for f, _, dtype, _ in met} == set(product(FAMILIES, DTYPES))
    assert {(f, cut) for f, *_, cut in met} == set(product(FAMILIES, CUTS))
    assert {(s, dtype, cut) for _, s, dtype, cut in met} == set(product(STRATEGIES, DTYPES, CUTS))
    assert {(kind, s) for f, s, *_ in met for kind in kinds(f)} == {(kind, s) for f, s in pairs() for kind in kinds(f)}
    left_out = set(product(FAMILIES, STRATEGIES)) - set(pairs())
    programs = {f: family.architecture.program for f, family in FAMILIES.items()}
    assert left_out == {*((f, "per block") for f in FAMILIES if programs[f].n_blocks < 2),
                        *((f, "checkmate") for f in FAMILIES if len(programs[f].steps) > SOLVED)}
    assert len(set(FAMILIES) - {f for f, s in left_out if s == "checkmate"}) > 4
    assert all(len(cells(*pair, whole=True)) == len(CELLS) == len(CUTS) * len(DTYPES) for pair in pairs())


def test_every_family_of_the_package_is_among_them():
    tried = {(type(family.architecture), getattr(family.architecture, "model_type", "")) for family in FAMILIES.values()}
    for kind in BUILT_IN.values():
        assert {(kind, word) for word in (kind.model_types if hasattr(kind, "model_type") else ("",))} <= tried, kind


def test_strategies_do_in_the_families_what_they_are_there_for():
    """A budget drops, a spill writes; otherwise they would be CacheAll by other names."""
    some = list(FAMILIES)[::len(FAMILIES) // examples(6, 19)]
    plans = {s: [cllm.plan(FAMILIES[f].architecture, FAMILIES[f].batch, FAMILIES[f].time, fitting(STRATEGIES[s], FAMILIES[f]))
                 for f in some] for s in ("budget", "spill", "cache+optional", "chen", "rotor", "dtr", "products")}
    assert sum("Recompute" in repr(plan.children) for plan in plans["budget"]) > len(some) / 2
    assert sum("Segment" in repr(plan.children) for s in ("chen", "rotor") for plan in plans[s]) > len(some)
    assert sum("rebuild" in repr(plan.script) for s in ("dtr", "products") for plan in plans[s]) > len(some)
    assert sum(plan.spills for plan in plans["spill"]) > len(some) / 2
    assert sum("probs" in repr(plan.children) for plan in plans["cache+optional"]) > len(some) / 2


def test_the_comparison_sees_one_last_bit_and_the_run_depends_on_its_seed():
    """Law 12: were the runs compared too loosely, or dropout switched off, the laws above would prove nothing."""
    family = FAMILIES["full tied dropout"]
    one, two = (family.train(cllm.CacheAll()) for _ in range(2))
    oracle.assert_same_bits(two, one)
    with pytest.raises(AssertionError):
        oracle.assert_same_bits(dataclasses.replace(family, seed=6).train(cllm.CacheAll()), one)
    weight = two["weights"]["blocks.2.mlp.fc2.bias"]
    weight[7] = np.nextafter(weight[7], np.float32(9))
    with pytest.raises(AssertionError, match="blocks.2.mlp.fc2.bias: 1 of 16"):
        oracle.assert_same_bits(two, one)
