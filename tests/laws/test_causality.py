"""Law 9: a later token changes no earlier output, and no example changes another."""
import numpy as np
import oracle
import pytest

import cllm

CASES = {
    "full": {},
    "lattice": dict(qkv="lattice", qkv_bias=False, out_proj=False),
    "untied relu": dict(tied=False, activation="relu"),
    "crystalline": dict(attention="crystalline"),
    "longer than a tile": dict(max_seq_len=210, d_model=16, n_heads=2),
}


def logits_and_change(new_model, case, dtype, at, num_threads):
    """Logits of a batch of two, and of the batch whose first example has other tokens from position `at` on."""
    config = {**oracle.CONFIG, **CASES[case]}
    T = config["max_seq_len"]
    ex = cllm.Executor(new_model(config, dtype), batch_size=2, seq_len=T, strategy=cllm.CacheAll(),
                       num_threads=num_threads)
    tokens, _ = oracle.draw_batch(config, 2, T)
    changed = tokens.copy()
    changed[0, at:] = (changed[0, at:] + 1 + np.arange(T - at) % 5) % config["vocab_size"]
    return ex.logits(tokens), ex.logits(changed)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_a_later_token_changes_no_bit_of_an_earlier_output(case, dtype, new_model):
    T = {**oracle.CONFIG, **CASES[case]}["max_seq_len"]
    for at in (1, T // 2, T - 1):
        before, after = logits_and_change(new_model, case, dtype, at, num_threads=2)
        oracle.assert_same_bits(after[0, :at], before[0, :at], f"earlier than {at}: ")
        oracle.assert_same_bits(after[1], before[1], "the other example: ")
        assert (after[0, at:] != before[0, at:]).any(-1).all(), "some later output ignores the tokens before it"


def test_a_token_reaches_every_later_output(new_model):
    """The last row sees the first token through attention alone; an attention that is the identity fails here."""
    config = oracle.CONFIG
    ex = cllm.Executor(new_model(config), batch_size=1, seq_len=9, strategy=cllm.CacheAll())
    tokens, _ = oracle.draw_batch(config, 1, 9)
    changed = tokens.copy()
    changed[0, 0] = (changed[0, 0] + 1) % config["vocab_size"]
    assert (ex.logits(changed) != ex.logits(tokens)).any(-1).all()


def test_a_shorter_batch_has_the_same_outputs(new_model):
    """Executors of another length or batch give the same bits for the rows they share."""
    model = new_model({**oracle.CONFIG, "max_seq_len": 120}, "float32")
    tokens, _ = oracle.draw_batch(oracle.CONFIG, 3, 120)
    whole = cllm.Executor(model, batch_size=3, seq_len=120, strategy=cllm.CacheAll()).logits(tokens)
    for B, T in ((1, 120), (3, 1), (2, 97), (3, 96), (1, 50)):
        part = cllm.Executor(model, batch_size=B, seq_len=T, strategy=cllm.CacheAll()).logits(tokens[:B, :T].copy())
        oracle.assert_near(part, whole[:B, :T], 2e-6, f"{B} x {T}")
        if T == 120:
            oracle.assert_same_bits(part, whole[:B])
