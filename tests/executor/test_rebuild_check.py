"""The determinism check: one bit that differs in one rebuilt value is found and named by value, block and step."""
import oracle
import pytest

import cllm

CONFIG = {**oracle.CONFIG, "n_layers": 3, "dropout": 0.1}
B, T = 3, 6
BATCH = oracle.draw_batch(CONFIG, B, T)
STRATEGIES = {"recompute": cllm.RecomputeAll(), "every:2": cllm.EveryNth(2), "binomial": cllm.Binomial(2),
              "selective": cllm.Selective(("norm", "act", "attn")), "cut": cllm.RecomputeAll(micro_batch=2)}


def executor(strategy, check="bits", dtype="float32"):
    model = cllm.GPT(cllm.ModelConfig(**CONFIG), seed=0, dtype=dtype)
    return model, cllm.Executor(model, B, T, strategy=strategy, num_threads=2, determinism_check=check)


def plant(monkeypatch, layer, site, at, bit=0):
    """Flip one bit of what `layer`'s forward writes at `site`, in its `at`-th call."""
    import cllm.layers as layers
    cls = getattr(layers, layer)
    real, calls = cls.forward, []

    def forward(self, *reads, **writes):
        real(self, *reads, **writes)
        calls.append(self)
        if len(calls) == at + 1:
            flat = writes[site].reshape(-1).view("uint8")
            flat[bit // 8] ^= 1 << bit % 8

    monkeypatch.setattr(cls, "forward", forward)
    return calls


def rebuilds_of(ex, name):
    """Numbers of the calls of layers like step `name`'s that rebuild, among all of a step, and which steps they are."""
    kind = type(next(op.step.layer for op in ex.schedule.ops if op.step.name == name))
    ops = [op for op in ex.schedule.ops if op.kind in ("forward", "rebuild") and isinstance(op.step.layer, kind)]
    return [(i, op.step) for i, op in enumerate(ops) if op.kind == "rebuild"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_clean_step_passes_and_changes_no_bit(strategy):
    for dtype in ("float32", "float64"):
        model, ex = executor(STRATEGIES[strategy], dtype=dtype)
        plain, off = executor(STRATEGIES[strategy], "off", dtype)
        for _ in range(2):
            assert ex.loss_and_grad(*BATCH) == off.loss_and_grad(*BATCH)
        oracle.assert_same_bits(dict(model.gradients), dict(plain.gradients))
        assert ex.high_water_bytes == ex.memory.arena_bytes == off.memory.arena_bytes


@pytest.mark.parametrize("name, layer, site", [
    ("blocks.0.ln1", "LayerNorm", "y"), ("blocks.0.attn.qkv", "Linear", "y"), ("blocks.0.attn", "Attention", "lse"),
    ("blocks.0.mlp.act", "Activation", "y"), ("blocks.0.ln1", "LayerNorm", "rstd")])
def test_one_planted_bit_is_found_and_named(name, layer, site, monkeypatch):
    _, probe = executor(cllm.RecomputeAll())
    targets = rebuilds_of(probe, name)
    for number, step in targets[::2]:
        for bit in (0, 37):
            with monkeypatch.context() as patch:
                model, ex = executor(cllm.RecomputeAll())
                plant(patch, layer, site, number, bit)
                with pytest.raises(cllm.RebuildError) as caught:
                    ex.loss_and_grad(*BATCH)
                assert f"{step.name}.{site}" in caught.value.where and f"blocks.{step.block}." in caught.value.where
                assert ex.step == 0


def test_a_bit_in_the_second_micro_batch_says_where(monkeypatch):
    _, ex = executor(cllm.RecomputeAll(micro_batch=2))
    per_micro = sum(op.kind in ("forward", "rebuild") and op.step.name.endswith("mlp.act") for op in ex.schedule.ops)
    plant(monkeypatch, "Activation", "y", per_micro + 3)
    with pytest.raises(cllm.RebuildError, match=r"blocks\.2\.mlp\.act\.y.*from 2"):
        ex.loss_and_grad(*BATCH)


def test_the_step_is_named(monkeypatch):
    """Training step 7 says so: the batch that shows the fault can be taken again."""
    _, ex = executor(cllm.RecomputeAll())
    ex.step = 7
    number = rebuilds_of(ex, "blocks.0.mlp.act")[0][0]
    plant(monkeypatch, "Activation", "y", number)
    with pytest.raises(cllm.RebuildError, match="step 7"):
        ex.loss_and_grad(*BATCH)


def test_a_wrong_forward_is_no_less_a_difference(monkeypatch):
    _, ex = executor(cllm.RecomputeAll())
    plant(monkeypatch, "Activation", "y", 1)
    with pytest.raises(cllm.RebuildError, match=r"blocks\.1\.mlp\.act\.y"):
        ex.loss_and_grad(*BATCH)


def test_the_step_after_a_found_bit_is_clean(monkeypatch):
    model, ex = executor(cllm.EveryNth(2))
    with monkeypatch.context() as patch:
        plant(patch, "LayerNorm", "y", rebuilds_of(ex, "blocks.0.ln1")[0][0])
        with pytest.raises(cllm.RebuildError):
            ex.loss_and_grad(*BATCH)
    model.zero_grad()
    plain, off = executor(cllm.CacheAll(), "off")
    assert ex.loss_and_grad(*BATCH) == off.loss_and_grad(*BATCH)
    oracle.assert_same_bits(dict(model.gradients), dict(plain.gradients))


def test_without_the_check_nothing_is_said(monkeypatch):
    """Law 12, from the other side: the planted bit is real, and only the check sees it."""
    model, ex = executor(cllm.RecomputeAll(), "off")
    plain, cache = executor(cllm.CacheAll(), "off")
    cache.loss_and_grad(*BATCH)
    plant(monkeypatch, "Activation", "y", rebuilds_of(ex, "blocks.0.mlp.act")[0][0], bit=30)
    ex.loss_and_grad(*BATCH)
    assert (model.gradients["blocks.2.mlp.fc2.weight"] != plain.gradients["blocks.2.mlp.fc2.weight"]).any()


def test_sampled_checks_some_values_and_not_others(monkeypatch):
    _, probe = executor(cllm.RecomputeAll())
    found = 0
    cases = [(name, site) for name, site in (("ln1", "y"), ("ln1", "mean"), ("ln1", "rstd"))]
    for name, site in cases:
        for number, _ in rebuilds_of(probe, f"blocks.0.{name}"):
            with monkeypatch.context() as patch:
                _, ex = executor(cllm.RecomputeAll(), "sampled")
                plant(patch, "LayerNorm", site, number)
                try:
                    ex.loss_and_grad(*BATCH)
                except cllm.RebuildError:
                    found += 1
    assert 0 < found < len(cases) * len(rebuilds_of(probe, "blocks.0.ln1"))


@pytest.mark.parametrize("check", ["bits", "sampled"])
def test_a_plan_that_compresses_cannot_be_held_to_bits(check):
    """What is rebuilt from a compressed input differs by design: refused, not reported as a fault of a layer."""
    with pytest.raises(cllm.ConfigError, match="compressed"):
        executor(cllm.Compressed(base=cllm.RecomputeAll()), check)
    executor(cllm.Compressed(base=cllm.RecomputeAll()), "off")


@pytest.mark.parametrize("check", ["", "all", None, True, 1, "Bits"], ids=repr)
def test_a_check_that_is_none_is_refused(check):
    with pytest.raises(cllm.ConfigError, match="determinism_check"):
        executor(cllm.CacheAll(), check)
