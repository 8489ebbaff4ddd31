"""First values of parameters: those of one draw, whatever the pieces in which they are drawn."""
import tracemalloc

import numpy as np
import pytest

import cllm
from cllm.models import parameters
from cllm.models.parameters import PIECE, initial_parameters

CONFIG = cllm.ModelConfig(vocab_size=1001, n_layers=1, d_model=256, n_heads=2, d_ff=512, max_seq_len=8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_array_is_what_one_draw_of_all_of_it_gives(dtype):
    program, seed = CONFIG.program, 3
    found = initial_parameters(program, seed, dtype, {})
    drawn = [p for p in program.parameters.values() if p.init == "normal"]
    assert any(found[p.name].size % PIECE and found[p.name].size > PIECE for p in drawn)
    for p in drawn:
        whole = np.random.default_rng([seed, *p.name.encode()]).normal(0.0, p.std, p.shape).astype(dtype)
        np.testing.assert_array_equal(found[p.name], whole, strict=True)


def test_every_way_to_begin_depends_on_no_piece(monkeypatch):
    program = cllm.add_lora(cllm.GPT(CONFIG, seed=0), rank=8).program
    whole = initial_parameters(program, 0, "float32", {})
    monkeypatch.setattr(parameters, "PIECE", 77)
    pieces = initial_parameters(program, 0, "float32", {})
    assert {p.init for p in program.parameters.values()} == {"normal", "ones", "zeros", "fan_in"}
    for name, array in whole.items():
        np.testing.assert_array_equal(pieces[name], array, strict=True)


def test_beside_the_arrays_there_is_room_for_one_piece():
    program = CONFIG.program
    tracemalloc.start()
    try:
        found = initial_parameters(program, 0, "float32", {})
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < sum(array.nbytes for array in found.values()) + (1 << 20)
