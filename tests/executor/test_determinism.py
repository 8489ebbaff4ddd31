"""The same work gives the same bits: twice, in another process, on other threads; and what each argument may change."""
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest

import cllm

DROPOUT = {**oracle.CONFIG, "dropout": 0.25}


def executor(model, B=3, T=6, strategy=None, **settings):
    return cllm.Executor(model, batch_size=B, seq_len=T, strategy=strategy or cllm.RecomputeAll(), **settings)


@pytest.fixture
def gradient(new_model, copies):
    """Loss and gradients of one call, on a fresh model and executor."""
    def run(config, tokens, targets, num_targets=None, step=0, dtype="float32", **settings):
        model = new_model(config, dtype)
        ex = executor(model, *tokens.shape, **settings)
        ex.step = step
        model.zero_grad()
        return ex.loss_and_grad(tokens, targets, num_targets=num_targets), copies(model.gradients)
    return run


# ------------------------------------------------------------------------------------------------------- the same

@pytest.mark.parametrize("config", [oracle.CONFIG, DROPOUT], ids=["plain", "dropout"])
def test_training_twice_gives_equal_bits(config, train_a_little):
    first = train_a_little(config, cllm.CacheAll(), 3, 6, num_threads=2)
    train_a_little({**config, "n_layers": 3, "d_model": 32}, cllm.CacheAll(), 5, 9, num_threads=3)  # leaves its traces
    oracle.assert_same_bits(train_a_little(config, cllm.CacheAll(), 3, 6, num_threads=2), first)


PROGRAM = """
import hashlib, numpy as np, cllm
model = cllm.GPT(cllm.ModelConfig(13, 2, 16, 2, 24, 9, dropout=0.2), seed=4)
ex = cllm.Executor(model, batch_size=2, seq_len=9, strategy=cllm.Selective(), num_threads=2, seed=6)
opt, digest = cllm.AdamW(model), hashlib.sha256()
for step in range(3):
    model.zero_grad()
    digest.update(np.float64(ex.loss_and_grad(*[np.random.default_rng(step).integers(0, 13, (2, 9))] * 2)).tobytes())
    opt.step()
for name in sorted(model.parameters):
    digest.update(model.parameters[name].tobytes())
"""


def test_another_process_gives_equal_bits():
    here = {}
    exec(PROGRAM, here)
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(cllm.__file__).parent.parent)}
        there = subprocess.run([sys.executable, "-c", PROGRAM + "print(digest.hexdigest())"], env=env, text=True,
                               capture_output=True, timeout=60)
        assert there.stdout.strip() == here["digest"].hexdigest(), there.stderr
    assert here["digest"].hexdigest() != hashlib.sha256().hexdigest()


@pytest.mark.parametrize("config", [oracle.CONFIG, DROPOUT, {**oracle.CONFIG, "qkv": "lattice", "tied": False}])
def test_bits_do_not_depend_on_the_number_of_threads(config, gradient):
    batch = oracle.draw_batch(config, 3, 6)
    expected = gradient(config, *batch, num_threads=1)
    for n in (2, 3, None):
        oracle.assert_same_bits(gradient(config, *batch, num_threads=n), expected, f"{n} threads: ")


def test_set_num_threads_changes_no_bit(gradient):
    batch = oracle.draw_batch(oracle.CONFIG, 3, 6)
    expected = gradient(oracle.CONFIG, *batch)
    try:
        for n in (1, 2, 3):
            cllm.set_num_threads(n)
            assert cllm.versions()["threads"] == n
            oracle.assert_same_bits(gradient(oracle.CONFIG, *batch), expected, f"{n} threads: ")
    finally:
        cllm.set_num_threads(2)


def test_calls_between_steps_leave_no_trace(new_model, copies):
    """loss, logits and another executor on the same model share its parameters and nothing else."""
    model, results = new_model(DROPOUT, "float32"), []
    tokens, targets = oracle.draw_batch(DROPOUT, 3, 6)
    for disturb in (False, True):
        ex = executor(model, strategy=cllm.EveryNth(2))
        other = executor(model, B=1, T=4, strategy=cllm.CacheAll(), num_threads=3)
        model.zero_grad()
        for _ in range(2):
            ex.loss_and_grad(tokens, targets)
            if disturb:
                ex.loss(targets * 0, tokens)
                ex.logits(tokens[::-1].copy())
                other.loss(tokens[:1, :4].copy(), targets[:1, :4].copy())
        results.append(copies(model.gradients))
    oracle.assert_same_bits(results[1], results[0])


@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.uint8, np.int64, np.uint64])
def test_any_integer_dtype_of_tokens_gives_the_same_bits(dtype, gradient):
    tokens, targets = oracle.draw_batch(oracle.CONFIG, 3, 6, ignored=0)
    oracle.assert_same_bits(gradient(oracle.CONFIG, tokens.astype(dtype), targets.astype(dtype)),
                            gradient(oracle.CONFIG, tokens, targets))


def test_the_batch_is_not_written_to_and_not_held(new_model):
    model = new_model(oracle.CONFIG)
    ex = executor(model)
    tokens, targets = oracle.draw_batch(oracle.CONFIG, 3, 6)
    kept = tokens.copy(), targets.copy()
    for array in (tokens, targets):
        array.flags.writeable = False
    first = ex.loss(tokens, targets)
    ex.loss_and_grad(tokens, targets)
    logits = ex.logits(tokens)
    oracle.assert_same_bits((tokens, targets), kept)
    copy = logits.copy()
    ex.logits((tokens + 1) % 13)
    ex.loss_and_grad((tokens + 1) % 13, targets)
    oracle.assert_same_bits(logits, copy, "logits handed out are the caller's: ")
    assert ex.loss(tokens, targets) == first


# ------------------------------------------------------------------------------------- number of targets, ignored ones

def test_the_divisor_is_the_valid_targets_unless_told(gradient):
    tokens, targets = oracle.draw_batch(oracle.CONFIG, 3, 6, ignored=4)
    oracle.assert_same_bits(gradient(oracle.CONFIG, tokens, targets, num_targets=14),
                            gradient(oracle.CONFIG, tokens, targets))
    loss, grads = gradient(oracle.CONFIG, tokens, targets, dtype="float64")
    loss2, grads2 = gradient(oracle.CONFIG, tokens, targets, num_targets=35, dtype="float64")
    oracle.assert_near(loss2, loss * 14 / 35, 1e-12, "loss")
    oracle.assert_near(grads2, {k: g * 14 / 35 for k, g in grads.items()}, 1e-12)


def test_a_part_without_targets_adds_nothing(new_model, copies):
    """Accumulating by hand, a part of the batch may have no target of its own: its divisor is given."""
    model = new_model(oracle.CONFIG)
    ex = executor(model)
    tokens, targets = oracle.draw_batch(oracle.CONFIG, 3, 6)
    model.zero_grad()
    ex.loss_and_grad(tokens, targets)
    before = copies(model.gradients)
    assert ex.loss_and_grad(tokens, targets * 0 - 1, num_targets=18) == 0
    oracle.assert_same_bits(dict(model.gradients), before)


@pytest.mark.parametrize("config", [oracle.CONFIG, {**oracle.CONFIG, "tied": False}], ids=["tied", "untied"])
def test_accumulating_by_hand_equals_the_whole_batch(config, new_model, copies, gradient):
    tokens, targets = oracle.draw_batch(config, 4, 6)
    num_targets = int((targets != -1).sum())
    loss, whole = gradient(config, tokens, targets)
    model = new_model(config, "float32")
    ex = executor(model, B=2)
    model.zero_grad()
    losses = [ex.loss_and_grad(tokens[i:i + 2], targets[i:i + 2], num_targets=num_targets) for i in (0, 2)]
    oracle.assert_near(sum(losses), loss, 1e-6, "loss")
    parts = copies(model.gradients)
    if config["tied"]:  # by hand the head's and the lookup's rows interleave: only there the last bits may differ
        oracle.assert_near(parts.pop("tok_emb.weight"), whole.pop("tok_emb.weight"), 1e-5, "tok_emb.weight")
    oracle.assert_same_bits(parts, whole)


@pytest.mark.parametrize("strategy_name", ["CacheAll", "RecomputeAll"])
def test_ignored_targets_change_no_gradient(strategy_name, gradient):
    """An example without targets adds nothing, whatever its tokens; nor does a last token whose target is ignored."""
    strategy = getattr(cllm, strategy_name)()
    tokens, targets = oracle.draw_batch(oracle.CONFIG, 3, 6)
    targets[1], targets[2, -1] = -1, -1
    expected = gradient(oracle.CONFIG, tokens, targets, strategy=strategy)
    other = tokens.copy()
    other[1], other[2, -1] = (other[1] + 3) % 13, (other[2, -1] + 5) % 13
    oracle.assert_same_bits(gradient(oracle.CONFIG, other, targets, strategy=strategy), expected)
    without = gradient(oracle.CONFIG, tokens[[0, 2]], targets[[0, 2]], strategy=strategy)
    for name, grad in without[1].items():  # + 0.0 makes a zero's sign of no account
        oracle.assert_same_bits(grad + 0.0, expected[1][name] + 0.0, name)
    other[0, 2] = (other[0, 2] + 1) % 13
    with pytest.raises(AssertionError):
        oracle.assert_same_bits(gradient(oracle.CONFIG, other, targets, strategy=strategy), expected)


# -------------------------------------------------------------------------------------------------- step and dropout

def test_step_counts_whole_batches_of_loss_and_grad(new_model):
    model = new_model(oracle.CONFIG)
    ex = executor(model, strategy=cllm.CacheAll(micro_batch=1))
    batch = oracle.draw_batch(oracle.CONFIG, 3, 6)
    seen = [ex.step]
    for _ in range(2):
        ex.loss_and_grad(*batch)
        seen.append(ex.step)
        ex.loss(*batch)
        ex.logits(batch[0])
    assert seen == [0, 1, 2] and ex.step == 2
    ex.step = 40
    ex.loss_and_grad(*batch)
    assert ex.step == 41


def test_dropout_is_keyed_by_seed_and_step_and_by_nothing_else(gradient):
    batch = oracle.draw_batch(DROPOUT, 3, 6)
    same = gradient(DROPOUT, *batch, seed=1, step=7)
    oracle.assert_same_bits(gradient(DROPOUT, *batch, seed=1, step=7, strategy=cllm.CacheAll(micro_batch=2)), same)
    losses = {gradient(DROPOUT, *batch, seed=seed, step=step)[0] for seed in (0, 1, 2) for step in (0, 1, 7)}
    assert len(losses) == 9


def test_dropout_is_off_in_loss_and_logits_and_on_in_loss_and_grad(new_model):
    tokens, targets = oracle.draw_batch(DROPOUT, 3, 6)
    with_dropout, without = (executor(new_model(c, "float32")) for c in (DROPOUT, oracle.CONFIG))
    assert with_dropout.loss(tokens, targets) == without.loss(tokens, targets)
    oracle.assert_same_bits(with_dropout.logits(tokens), without.logits(tokens))
    assert abs(with_dropout.loss_and_grad(tokens, targets) - without.loss_and_grad(tokens, targets)) > 1e-3


@pytest.mark.parametrize("settings", [dict(out_proj=True), dict(out_proj=False, tied=False, qkv="lattice")])
def test_gradient_under_one_mask_equals_central_differences(settings, new_model):
    """The mask depends on step alone: with the step held, the loss is a function whose gradient can be checked."""
    config = {**DROPOUT, "d_model": 8, "d_ff": 6, "dropout": 0.4, **settings}
    model = new_model(config)
    ex = executor(model, B=3, T=5, strategy=cllm.EveryNth(2, micro_batch=2))
    batch = oracle.draw_batch(config, 3, 5)

    def loss():
        ex.step = 11
        return ex.loss_and_grad(*batch)

    model.zero_grad()
    loss()
    analytic = {name: g.copy() for name, g in model.gradients.items()}
    rng = np.random.default_rng(0)
    for name, array in model.parameters.items():
        flat = array.reshape(-1)
        for i in rng.choice(flat.size, min(flat.size, 6), replace=False):
            start, values = flat[i], []
            for sign in (1, -1):
                flat[i] = start + sign * 1e-5
                values.append(loss())
            flat[i] = start
            a, n = analytic[name].reshape(-1)[i], (values[0] - values[1]) / 2e-5
            assert abs(a - n) <= 1e-6 * max(abs(a), abs(n)) + 1e-9, f"{name}[{i}]: {a} against {n}"


def test_each_dropout_site_scales_what_it_keeps_and_has_a_mask_of_its_own(new_model):
    """With one row and branches that add nothing, each site's mask stands in a gradient: of P, of the branches' biases.

    The embedded row is then mask (E + P) / (1 - p), the residual stream stays that, and every gradient below is that of
    the stream times the site's own mask / (1 - p); the oracle gives the stream's, from the row put together here.
    """
    p, C = 0.5, 256
    config = {**oracle.CONFIG, "dropout": p, "d_model": C, "tied": False}
    model = new_model(config)
    branches = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.out", "mlp.fc2")]
    for name in branches:
        model.parameters[name + ".weight"][...] = model.parameters[name + ".bias"][...] = 0
    masks = []
    for step in (0, 1):
        ex = executor(model, B=1, T=1)
        ex.step = step
        model.zero_grad()
        loss = ex.loss_and_grad(np.array([[4]]), np.array([[7]]))
        row = model.parameters["tok_emb.weight"][4] + model.parameters["pos_emb.weight"][0]
        seen = model.gradients["pos_emb.weight"][0] != 0
        parameters = {**model.parameters, "pos_emb.weight": np.zeros((9, C))}
        parameters["pos_emb.weight"][0] = seen * row / (1 - p) - model.parameters["tok_emb.weight"][4]
        _, reference, gradients = oracle.run(config, parameters, np.array([[4]]), np.array([[7]]))
        oracle.assert_near(loss, reference, 1e-10, "loss")
        for name, grad in [("pos_emb.weight", model.gradients["pos_emb.weight"][0]),
                           *((name, model.gradients[name + ".bias"]) for name in branches)]:
            masks.append(grad != 0)
            oracle.assert_near(grad, gradients["pos_emb.weight"][0] * masks[-1] / (1 - p), 1e-10, name)
    spread = 5 * (p * (1 - p) / C) ** 0.5
    for i, mask in enumerate(masks):
        assert abs(mask.mean() - (1 - p)) < spread
        assert all(abs((mask == other).mean() - 0.5) < spread for other in masks[:i]), "two masks are related"


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_embeddings_drop_their_share_in_every_row_and_channel(p, new_model):
    """Blocks that add nothing: the gradient of P then shows the mask of the embeddings, a row a position."""
    config = {**oracle.CONFIG, "n_layers": 1, "dropout": p, "tied": False, "d_model": 64, "max_seq_len": 256}
    model = new_model(config)
    for name in model.parameters:
        if name.endswith(("attn.out.weight", "attn.out.bias", "mlp.fc2.weight", "mlp.fc2.bias")):
            model.parameters[name][...] = 0
    ex = executor(model, B=1, T=256, strategy=cllm.RecomputeAll())
    model.zero_grad()
    ex.loss_and_grad(np.zeros((1, 256), int), np.arange(256)[None] % 13)
    dropped = (model.gradients["pos_emb.weight"] == 0)
    share, n = dropped.mean(), dropped.size
    assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5
    assert dropped.mean(0).std() < 3 * (p * (1 - p) / 256) ** 0.5, "a whole channel is dropped"
    assert dropped.mean(1).std() < 3 * (p * (1 - p) / 64) ** 0.5, "a whole row is dropped"
