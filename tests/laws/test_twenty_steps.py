"""Law 3 and 4 over a training run: twenty steps with dropout under every lossless strategy and 1, 2 and 3 threads."""

import hashlib

import numpy as np
import pytest
from longer import whole

import cllm

CONFIG = cllm.ModelConfig(vocab_size=61, n_layers=4, d_model=32, n_heads=4, d_ff=64, max_seq_len=24, dropout=0.1)
BATCH, TIME, STEPS = 5, 24, 20


def strategies(directory):
    return {
        "cache": cllm.CacheAll(),
        "cache, optional sites": cllm.CacheAll(also=("probs", "logits")),
        "recompute": cllm.RecomputeAll(),
        "every second": cllm.EveryNth(2),
        "sqrt": cllm.Sqrt(),
        "binomial, one slot": cllm.Binomial(1),
        "binomial, two slots": cllm.Binomial(2),
        "selective": cllm.Selective(),
        "selective, all": cllm.Selective(("norm", "act", "attn", "mlp")),
        "per block": cllm.PerBlock({range(0, 2): cllm.RecomputeAll()}),
        "spill": cllm.Spill(str(directory)),
        "micro-batch 2": cllm.CacheAll(micro_batch=2),
        "recompute, micro-batch 1": cllm.RecomputeAll(micro_batch=1),
        "selective, micro-batch 3": cllm.Selective(micro_batch=3),
        "budget": cllm.MemoryBudget("2MB"),
    }


def run(strategy, threads):
    """Digest of losses, of the gradients of every step, and of the final weights."""
    data = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (STEPS, 2, BATCH, TIME))
    model = cllm.GPT(CONFIG, seed=3)
    executor = cllm.Executor(model, BATCH, TIME, strategy=strategy, num_threads=threads, seed=9)
    optimizer = cllm.AdamW(model, lr=1e-3)
    digest = hashlib.sha256()
    for tokens, targets in data:
        model.zero_grad()
        digest.update(np.float64(executor.loss_and_grad(tokens, targets)).tobytes())
        for gradient in model.gradients.values():
            digest.update(gradient.tobytes())
        cllm.clip_grad_norm(model, 1.0)
        optimizer.step()
        assert executor.high_water_bytes == executor.memory.arena_bytes
    for parameter in model.parameters.values():
        digest.update(parameter.tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def reference():
    return run(cllm.CacheAll(), 1)


@pytest.mark.parametrize("name, threads", [
    (name, threads) if (number + threads) % 3 < 2 else whole(name, threads)
    for number, name in enumerate(strategies(".")) for threads in (1, 2, 3)])
def test_twenty_steps_give_the_same_bits(name, threads, tmp_path, reference):
    assert run(strategies(tmp_path)[name], threads) == reference


def test_the_digest_sees_a_lossy_strategy(reference):
    assert run(cllm.Compressed(), 1) != reference
