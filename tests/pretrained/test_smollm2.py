"""Real weights, SmolLM2-135M-Instruct: perplexities and the likeliest tokens are those of transformers in float32.

Skipped unless the environment variable CLLM_WEIGHTS names the folder that `examples/get_smollm2.py` filled.
"""
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import cllm

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "smollm2"
WEIGHTS = Path(os.environ.get("CLLM_WEIGHTS", "nowhere")) / "SmolLM2-135M-Instruct.Q4_1.gguf"
EXPECTED = json.loads((GOLDEN / "smollm2_eval.json").read_text())

pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="needs CLLM_WEIGHTS, see examples/get_smollm2.py")


@pytest.fixture(scope="module")
def model():
    return cllm.from_gguf(WEIGHTS)


@pytest.mark.parametrize("time, count", [(256, 8), (512, 4), (1024, 2)])
def test_perplexities(model, time, count):
    from cllm.train.evaluation import window_losses

    losses = window_losses(cllm.Executor(model, 1, time), np.load(GOLDEN / "ids_first_2049.npy"), count)
    expected = EXPECTED[f"T{time}x{count}"]
    assert np.abs(np.array(losses) - expected["by_window"]).max() < 3e-5
    assert np.mean(losses) == pytest.approx(expected["mean_nll"], abs=3e-5)


@pytest.mark.parametrize("example", EXPECTED["greedy"], ids=lambda example: example["prompt"][:20])
def test_the_likeliest_tokens(model, example):
    assert cllm.generate(model, example["prompt_ids"], len(example["ids"]), temperature=0).tolist() == example["ids"]


def test_the_tokenizer(model):
    pytest.importorskip("tokenizers", reason="needs the extra hf")
    from cllm.pretrained import Speech

    speech = Speech.beside(WEIGHTS)
    for example in EXPECTED["greedy"]:
        assert speech.tokenizer.encode(example["prompt"]).tolist() == example["prompt_ids"]
        words = [token for token in example["ids"] if token > 16]  # the text is told without special tokens
        assert speech.tokenizer.decode(words) == example["text"]
    ids = np.load(GOLDEN / "ids_first_2049.npy")
    again = speech.tokenizer.encode(speech.tokenizer.decode(ids))
    assert (again == ids).all() and speech.stops == (2,)


def test_saved_and_loaded_again(model, tmp_path):
    saved = model.save_pretrained(tmp_path)
    again = cllm.from_pretrained(tmp_path)
    assert again.architecture == model.architecture and saved.elements == 134_515_008
    assert all((again.parameters[name] == values).all() for name, values in model.parameters.items())
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= {path.name for path in tmp_path.iterdir()}


def test_the_example_tunes_and_saves(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tokenizers", reason="needs the extra hf")
    monkeypatch.setattr(sys, "argv", ["finetune_smollm2.py", str(WEIGHTS), str(tmp_path / "tuned"), "--steps", "4",
                                      "--seq-len", "64"])
    runpy.run_path(str(ROOT / "examples" / "finetune_smollm2.py"), run_name="__main__")
    told = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(told) >= 2 and told[-1] < told[0]
    assert cllm.from_pretrained(tmp_path / "tuned").architecture.n_layers == 30
