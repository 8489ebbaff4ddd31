"""Fixed tables of positions: their formulas, their place in the model, and the bytes that they take."""
import numpy as np
import oracle
import pytest

import cllm
from cllm.layers.positions import position_table
from cllm.layers.primes import primes

FIXED = ["sinusoidal", "spiral", "clock", "prime"]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7, 25, 168, 3000])
def test_primes_are_the_first_ones(count):
    assert primes(count).tolist() == oracle.primes(count).tolist()


def test_the_ten_thousandth_prime_is_known():
    assert primes(10_000)[-1] == 104_729


@pytest.mark.parametrize("rows, channels", [(1, 1), (7, 3), (300, 16)])
@pytest.mark.parametrize("kind", FIXED)
def test_table_equals_the_formula(kind, rows, channels):
    oracle.assert_near(position_table(kind, rows, channels), oracle.position_table(kind, rows, channels), 1e-14)


@pytest.mark.parametrize("kind", ["spiral", "clock", "prime"])
def test_rows_have_length_one(kind):
    assert np.allclose((position_table(kind, 100, 12) ** 2).sum(1), 1, rtol=1e-14, atol=0)


def test_the_clock_returns_after_twelve():
    table = position_table("clock", 25, 8)
    assert np.allclose(table[:12], table[12:24], atol=1e-14) and np.allclose(table[0], table[24], atol=1e-14)
    assert not np.allclose(table[0], table[6])


@pytest.mark.parametrize("kind", [*FIXED, "none"])
def test_a_model_without_learned_positions_has_no_parameter_of_them(kind):
    model = cllm.GPT(cllm.ModelConfig(**{**oracle.CONFIG, "positions": kind}))
    assert "pos_emb.weight" not in model.parameters and "pos_emb.weight" not in model.gradients
    assert list(model.tables) == ([] if kind == "none" else ["positions"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", FIXED)
def test_the_table_is_rounded_once_and_cannot_be_written(kind, dtype):
    model = cllm.GPT(cllm.ModelConfig(**{**oracle.CONFIG, "positions": kind}), dtype=dtype)
    oracle.assert_same_bits(model.tables["positions"], position_table(kind, 9, 16).astype(dtype))
    with pytest.raises(ValueError):
        model.tables["positions"][0, 0] = 1


def test_the_report_counts_the_table():
    for kind, expected in (("prime", 9 * 16 * 4), ("none", 0), ("learned", 0)):
        model = cllm.GPT(cllm.ModelConfig(**{**oracle.CONFIG, "positions": kind}))
        ex = cllm.Executor(model, batch_size=2, seq_len=4)
        assert ex.memory.table_bytes == sum(t.nbytes for t in model.tables.values()) == expected
        m = ex.memory
        assert m.total_bytes == (m.arena_bytes + m.parameter_bytes + m.gradient_bytes + m.optimizer_bytes
                                 + m.batch_bytes + m.table_bytes)


def test_without_positions_order_reaches_the_output_through_the_mask_alone(new_model):
    """The last of three tokens sees the two before it as a set, in a single block."""
    model = new_model({**oracle.CONFIG, "positions": "none", "n_layers": 1})
    ex = cllm.Executor(model, batch_size=1, seq_len=3)
    ab, ba = (ex.logits(np.array([t]))[0, 2] for t in ([1, 2, 3], [2, 1, 3]))
    assert np.allclose(ab, ba, rtol=1e-9, atol=1e-9)
    model = new_model({**oracle.CONFIG, "positions": "spiral", "n_layers": 1})
    ex = cllm.Executor(model, batch_size=1, seq_len=3)
    ab, ba = (ex.logits(np.array([t]))[0, 2] for t in ([1, 2, 3], [2, 1, 3]))
    assert not np.allclose(ab, ba, rtol=1e-3, atol=1e-3)
