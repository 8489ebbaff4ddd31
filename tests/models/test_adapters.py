"""Adapters: they begin as nothing, are chosen by words, share their base's arrays, train alone, and are kept with a run."""
import copy
import pickle

import numpy as np
import pytest
from families import FAMILIES, example
from own_model import Mine

import cllm
from cllm.models.linear_parts import linear_parts
from cllm.snapshot import load_snapshot, write_snapshot

CONFIG = cllm.ModelConfig(13, 2, 8, 2, 12, 9)
LLAMA = FAMILIES["llama"].architecture
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 3, 6))


def adapted(architecture=CONFIG, dtype="float32", **settings):
    """A model with adapters that add something."""
    model, rng = cllm.add_lora(cllm.Model(architecture, dtype=dtype), **settings), np.random.default_rng(1)
    for name in model.gradients:
        model.parameters[name][...] = rng.normal(0, 0.4, model.parameters[name].shape)
    return model


@pytest.mark.parametrize("name", [name for name in FAMILIES if linear_parts(FAMILIES[name].architecture)])
def test_adapters_begin_as_nothing_in_every_family(name):
    family = FAMILIES[name]
    base = family.model()
    if isinstance(base.architecture, cllm.models.adapted.Adapted):
        return
    model = cllm.add_lora(base, 2, targets="all")
    assert model.trainable == ("*lora*",) and set(model.gradients) == set(model.parameters) - set(base.parameters)
    assert all(model.parameters[n] is array for n, array in base.parameters.items())
    feeds = family.draw()
    one, two = family.executor(base), family.executor(model)
    # in bfloat16 the base rounds what its product leaves, an adapted one does not
    rel = 1e-7 if base.compute == "float32" else 2e-2
    assert one.loss(**feeds) == pytest.approx(two.loss(**feeds), rel=rel)
    two.loss_and_grad(**feeds)
    a, b = (np.concatenate([g.ravel() for n, g in model.gradients.items() if f"lora_{w}" in n]) for w in "ab")
    assert not a.any() and b.any()
    assert two.memory.gradient_bytes == 4 * (a.size + b.size) == two.memory.optimizer_bytes // 2


def test_a_begins_as_peft_has_it_and_from_its_seed():
    base = cllm.Model(CONFIG)
    first, second, other = (cllm.add_lora(base, 64, targets="fc2", seed=seed) for seed in (0, 0, 1))
    name = "blocks.0.mlp.fc2.lora_a.weight"
    a = first.parameters[name]
    assert a.shape == (64, 12) and np.abs(a).max() <= 12 ** -0.5 and np.abs(a).max() > 0.99 * 12 ** -0.5
    assert a.std() == pytest.approx((3 * 12) ** -0.5, rel=0.05)
    assert a.tobytes() == second.parameters[name].tobytes() != other.parameters[name].tobytes()
    assert not first.parameters["blocks.0.mlp.fc2.lora_b.weight"].any()


@pytest.mark.parametrize("architecture, targets, expected", [
    (LLAMA, ("q", "v"), [("attn.qkv", 2, 8, 24)]), (LLAMA, ("q_proj", "v_proj"), [("attn.qkv", 2, 8, 24)]),
    (LLAMA, "qkv", [("attn.qkv", 1, 8, 32)]), (CONFIG, ("q", "v"), [("attn.qkv", 2, 8, 16)]),
    (CONFIG, ("c_attn", "attn.c_proj"), [("attn.qkv", 1, 8, 24), ("attn.out", 1, 8, 8)]),
    (LLAMA, ("o", "down", "gate"), [("attn.out", 1, 16, 8), ("mlp.fc1", 1, 8, 12), ("mlp.fc2", 1, 12, 8)]),
    (LLAMA, "all", [("attn.qkv", 3, 8, 32), ("attn.out", 1, 16, 8), ("mlp.fc1", 2, 8, 24), ("mlp.fc2", 1, 12, 8)])])
def test_words_choose_parts(architecture, targets, expected):
    model = cllm.add_lora(cllm.Model(architecture), rank=3, targets=targets)
    for block in range(architecture.n_layers):
        mine = {n: p.shape for n, p in model.parameters.items() if "lora" in n and n.startswith(f"blocks.{block}.")}
        assert mine == {f"blocks.{block}.{step}.lora_{w}.weight": shape for step, count, width, columns in expected
                        for w, shape in (("a", (3 * count, width)), ("b", (3, columns)))}


def test_patterns_choose_single_blocks():
    model = cllm.add_lora(cllm.Model(LLAMA), targets=("blocks.2.*.q", "blocks.[01].mlp.fc2.*"))
    assert set(model.gradients) == {f"blocks.{step}.lora_{w}.weight" for w in "ab"
                                    for step in ("2.attn.qkv", "0.mlp.fc2", "1.mlp.fc2")}


@pytest.mark.parametrize("settings, match", [
    ({"targets": "lm_head"}, r"targets=.*each mean a linear part of the model; got 'lm_head'.*There are .*c_attn.* and 'all'"),
    ({"targets": ("q", "qkv")}, "must not mean the same columns twice; got blocks.0.attn.qkv.q and blocks.0.attn.qkv.qkv"),
    ({"targets": ()}, "must be words"), ({"targets": 3}, "must be words"), ({"rank": 0}, "rank"), ({"alpha": 0}, "alpha"),
    ({"dropout": 1.0}, "dropout"), ({"rslora": 2}, "rslora"), ({"seed": -1}, "seed")])
def test_what_cannot_be_meant_is_refused(settings, match):
    with pytest.raises(cllm.ConfigError, match=match):
        cllm.add_lora(cllm.Model(CONFIG), **settings)


def test_models_with_and_without_adapters_are_not_taken_for_one_another(tmp_path):
    model, base = adapted(), cllm.Model(CONFIG)
    for call, match in ((lambda: cllm.add_lora(model), "must have no adapters yet"),
                        (lambda: cllm.load_adapter(model, tmp_path), "must have no adapters yet"),
                        (lambda: cllm.merge_adapter(base), "must have adapters"),
                        (lambda: cllm.save_adapter(base, tmp_path), "must have adapters"),
                        (lambda: cllm.add_lora(CONFIG), "must be a cllm.Model"),
                        (lambda: model.save_pretrained(tmp_path), "must be of a model without adapters"),
                        (lambda: cllm.add_lora(cllm.Model(FAMILIES["mixer"].architecture), targets="q"), "linear part"),
                        (lambda: cllm.save_adapter(adapted(example("encoder").Encoder(n_heads=2, n_layers=3, d_model=8, d_ff=12,
                                                                                     vocab_size=13, max_seq_len=9),
                                                           targets="all"), tmp_path), "files hold")):
        with pytest.raises(cllm.ConfigError, match=match):
            call()
    assert not list(tmp_path.iterdir())


def test_the_scale_is_alpha_over_rank_or_over_its_root():
    logits = {}
    for rslora, rank, alpha in ((False, 4, 8), (True, 4, 4), (False, 4, 4)):
        model = adapted(rank=rank, alpha=alpha, rslora=rslora)
        logits[rslora, alpha] = cllm.Executor(model, 3, 6).logits(TOKENS[0])
    assert logits[False, 8].tobytes() == logits[True, 4].tobytes() != logits[False, 4].tobytes()


def test_dropout_is_on_in_training_alone_and_hangs_on_seed_and_step():
    still, dropping = adapted(), adapted(dropout=0.5)
    executors = [cllm.Executor(model, 3, 6, seed=seed) for model, seed in ((still, 0), (dropping, 0), (dropping, 1))]
    assert executors[0].loss(*TOKENS) == executors[1].loss(*TOKENS)
    losses = [executor.loss_and_grad(*TOKENS) for executor in executors]
    assert len(set(losses)) == 3
    executors[1].step = 0
    assert executors[1].loss_and_grad(*TOKENS) == losses[1] != executors[1].loss_and_grad(*TOKENS)


def test_each_adapter_has_a_mask_of_its_own():
    program = cllm.add_lora(cllm.Model(cllm.ModelConfig(13, 2, 8, 2, 12, 9, dropout=0.1)), targets="all", dropout=0.1).program
    streams = [step.layer.stream for step in program.steps if hasattr(step.layer, "stream")]
    assert len(set(streams)) == len(streams) == 5 + 2 * 4


def test_training_moves_adapters_alone_and_the_base_sees_nothing():
    base = FAMILIES["llama"].model()
    before = {name: array.copy() for name, array in base.parameters.items()}
    model = cllm.add_lora(base, targets="all")
    executor, optimizer = cllm.Executor(model, 3, 6), cllm.AdamW(model, lr=3e-2)
    losses = []
    for _ in range(20):
        model.zero_grad()
        losses.append(executor.loss_and_grad(*TOKENS))
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all(base.parameters[name].tobytes() == array.tobytes() for name, array in before.items())
    merged = cllm.merge_adapter(model)
    assert merged.parameters["tok_emb.weight"] is base.parameters["tok_emb.weight"]
    assert cllm.Executor(merged, 3, 6).loss(*TOKENS) == pytest.approx(executor.loss(*TOKENS), rel=1e-5)


def test_a_model_with_adapters_takes_far_less_than_the_whole():
    whole = cllm.plan(LLAMA, 8, 9)
    model = cllm.add_lora(cllm.Model(LLAMA), rank=1)
    some = cllm.plan(model, 8, 9)
    assert some.arena_bytes < 0.95 * whole.arena_bytes
    base, mine = (sum(p.nbytes for n, p in model.parameters.items() if ("lora" in n) == lora) for lora in (False, True))
    assert whole.total_bytes - some.total_bytes == whole.arena_bytes - some.arena_bytes + 3 * base - 4 * mine
    assert not model.program.readers["blocks.0.mlp.act.y"] and model.program.readers["blocks.0.ln1.y"]


@pytest.mark.parametrize("architecture", [CONFIG, Mine()], ids=["gpt", "a user's own"])
def test_files_snapshots_and_copies_keep_adapters(architecture, tmp_path):
    targets = "all" if architecture is CONFIG else linear_parts(architecture)[0].word
    model = adapted(architecture, targets=targets, rank=2, dropout=0.1)
    given = None if architecture is CONFIG else Mine
    model.save(tmp_path / "model")
    path = write_snapshot(tmp_path / "run", 2, model, cllm.AdamW(model))
    loaded = [cllm.load(tmp_path / "model", given), load_snapshot(path, architecture=given)[0], model.copy(),
              pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    fresh = cllm.add_lora(cllm.Model(architecture), targets=targets, rank=2, dropout=0.1)
    load_snapshot(path, fresh, cllm.AdamW(fresh))
    for other in (*loaded, fresh):
        assert other.architecture == model.architecture
        assert all(other.parameters[n].tobytes() == array.tobytes() for n, array in model.parameters.items())
    assert [other.trainable for other in loaded[1:]] == [("*lora*",)] * 4
    if given is not None:
        with pytest.raises(cllm.ConfigError, match="must be given for a family that is not built in"):
            cllm.load(tmp_path / "model")
    with pytest.raises(cllm.SnapshotError, match="must be of the model's configuration"):
        load_snapshot(path, cllm.Model(architecture))


def test_a_run_is_resumed_to_the_bit(tmp_path):
    text = bytes(range(200)) * 20
    architecture = cllm.ModelConfig(256, 2, 8, 2, 12, 9)
    settings = dict(batch_size=2, seq_len=5, eval_every=2, snapshot_every=2, warmup=0, min_lr=1e-3)

    def train(out, steps, resume=False):
        model = cllm.add_lora(cllm.Model(architecture), rank=2, dropout=0.2)
        trainer = cllm.Trainer(model, np.frombuffer(text, np.uint8), tmp_path / out, resume=resume, steps=steps, **settings)
        trainer.run()
        return model

    straight = train("straight", 4)
    train("broken", 2)
    resumed = train("broken", 4, resume=True)
    assert all(resumed.parameters[n].tobytes() == array.tobytes() for n, array in straight.parameters.items())
    with pytest.raises(cllm.CllmError, match="configuration"):
        cllm.Trainer(cllm.add_lora(cllm.Model(architecture), rank=3), np.frombuffer(text, np.uint8), tmp_path / "broken",
                     resume=True, steps=6)


def test_text_is_sampled_with_adapters():
    architecture = cllm.ModelConfig(256, 2, 8, 2, 12, 40)
    base = cllm.Model(architecture)
    model = cllm.add_lora(base, targets="all")
    choice = dict(max_new_tokens=8, temperature=0.0)
    same = cllm.generate(model, np.array([3, 4]), **choice)
    assert np.array_equal(same, cllm.generate(base, np.array([3, 4]), **choice))
    for name in model.gradients:
        model.parameters[name][...] = np.random.default_rng(2).normal(0, 1, model.parameters[name].shape)
    assert not np.array_equal(same, cllm.generate(model, np.array([3, 4]), **choice))


def test_merged_bits_hang_on_no_number_of_threads():
    model = adapted(LLAMA, targets="all", rank=5)
    found = []
    for threads in (1, 3):
        model.threads = threads
        found.append(cllm.merge_adapter(model))
    assert all(found[1].parameters[n].tobytes() == array.tobytes() for n, array in found[0].parameters.items())
