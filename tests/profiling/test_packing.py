"""Packed rows against padding: what is found is of every example, once, and the losses agree."""
import argparse

from profiling_scripts import script


def test_packing_is_measured(monkeypatch):
    packing, models = script("packing"), script("jobs.models")
    arguments = argparse.Namespace(text=None, paragraphs=6, batch_size=2, seq_len=700, threads=1, rounds=2, model="gpt",
                                   preset=None, settings=[])
    sizes = {"vocab_size": 256, "n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 32, "max_seq_len": 700}
    found = packing.measured(arguments, models.asked(arguments, sizes))
    assert found["examples"] == 6 and 0 < found["targets"] < found["tokens"]
    assert found["loss"]["relative"] < 1e-6 and found["loss"]["packed"] > 1
    for one in found["ways"].values():
        assert 0.1 < one["used"] <= 1 and one["targets_per_second"] > 0 and len(one["seconds"]) == 2
    assert found["ways"]["packed"]["used"] > found["ways"]["padded"]["used"]


def test_paragraphs_ask_for_their_second_half():
    first, *_ = found = script("packing").paragraphs(None, 30)
    assert len(found) == 30 and f"{first['prompt']}{first['completion']}".startswith("It is a truth universally acknowledged")
    assert all(abs(len(one["prompt"].split()) - len(one["completion"].split())) <= 1 for one in found)
