"""Each example runs as a reader runs it, and learns; its layers are proved; what the pages show of it is what it says."""
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from families import EXAMPLES, example
from letters import speech

import cllm
from cllm.models.llama import Llama
from cllm.testing import check_layer

DOCS = Path(__file__).parents[2] / "docs"
LEARNS = {  # what is measured before and after training, as the script returns it
    "encoder": lambda progress: progress[0][1] < 0.65 and progress[-1][1] > 0.8 and progress[-1][0] < 0.75 * progress[0][0],
    "mixer": lambda progress: progress[0][1] < 0.4 and progress[-1][1] > 0.7 and progress[-1][0] < 0.7 * progress[0][0],
    "mixture": lambda progress: progress[0] > 5.4 and progress[-1] < 2.8,
    "your_own_layer": lambda progress: progress[0] > 5.4 and np.mean(progress[-5:]) < 2.8,
    "your_own_model": lambda progress: progress[0] > 5.4 and np.mean(progress[-5:]) < 3.0,
}
OF_WEIGHTS = {"get_smollm2", "finetune_smollm2", "finetune_dates"}  # run where there are weights
LIMITS = {"encoder": 2_000_000, "mixer": 3_000_000, "mixture": 4_000_000, "your_own_layer": 2_000_000,
          "your_own_model": 3_000_000}
LAYERS = {
    "encoder": lambda m: [m.BothWays(H=2, D=3, C=6), m.MeanPool(C=5)],
    "mixer": lambda m: [m.Patches(S=6, P=9, Q=4), m.Swap(P=3, C=5), m.MeanPool(P=3, C=5)],
    "mixture": lambda m: [m.Shares(E=4, F=3, K=2), m.Shares(E=3, F=2, K=3), m.Shares(E=2, F=4, K=1)],
    "your_own_layer": lambda m: [m.Scale(C=4), m.Convolution(C=4, K=2), m.Convolution(C=4, K=5)],
}


def test_every_example_is_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*LEARNS, "your_own_strategy", *OF_WEIGHTS}


@pytest.mark.parametrize("name", LEARNS)
def test_an_example_runs_and_learns_within_its_budget(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tests run beside one another
    progress = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")["progress"]
    assert LEARNS[name](progress), progress
    said = capsys.readouterr().out
    assert f"within a limit of {LIMITS[name]:,} bytes in total" in said
    written, predicted = re.search(r"highest byte written: ([\d,]+), as predicted: ([\d,]+)", said).groups()
    assert written == predicted


def test_an_example_does_as_many_steps_as_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["your_own_layer.py", "--steps", "3"])
    assert len(runpy.run_path(str(EXAMPLES / "your_own_layer.py"), run_name="__main__")["progress"]) == 3


def test_the_strategy_keeps_its_limit_and_every_bit(capsys):
    example("your_own_strategy").main(threads=1)
    said = capsys.readouterr().out
    assert "every gradient has the same bits" in said and len(set(re.findall(r"^loss (\S+),", said, re.MULTILINE))) == 1
    kept, greedy, planned = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) bytes in total", said))
    assert max(greedy, planned) <= kept * 8 // 10
    with pytest.raises(cllm.BudgetError, match="within reach"):
        cllm.plan(cllm.ModelConfig.preset("tiny"), 4, 64, example("your_own_strategy").Greedy(1000))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_keep_what_they_promise(name):
    module = example(name)
    layers = LAYERS[name](module)
    declared = {value for value in vars(module).values() if isinstance(value, type) and issubclass(value, cllm.Layer)
                and value.__module__ == name}
    assert {type(layer) for layer in layers} == declared
    for layer in layers:
        check_layer(layer)


def test_a_row_uses_its_best_experts_alone():
    layer = example("mixture").Shares(E=4, F=1, K=2)
    scores = np.array([[1.0, 3.0, 2.0, 0.0], [0.0, 0.0, -1.0, 5.0]])
    shares = layer.shares(scores)
    high = 1 / (1 + np.exp(-1))
    assert shares[0] == pytest.approx([0, high, 1 - high, 0]) and shares.sum(axis=1) == pytest.approx(1)
    assert (shares[1] > 0).tolist() == [True, True, False, True]  # equal at the second place: both


def test_passages_of_the_encoder_stand_in_quotation_marks_or_not():
    data = example("encoder").passages(64)
    assert data["tokens"].shape == (len(data["label"]), 16) and data["tokens"].max() == 63
    assert 0.4 < data["label"].mean() < 0.6 and (data["tokens"][:, :8] > 0).all()


@pytest.mark.parametrize("page", ["your-own-strategy", "your-own-layer", "your-own-model"])
def test_the_classes_of_a_page_are_those_of_its_example(page):
    source = (EXAMPLES / f"{page.replace('-', '_')}.py").read_text(encoding="utf-8")
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    shown = re.findall(r"(@dataclass\(frozen=True\)\nclass (\w+).*?\n)(?=\n\n\S|```)", text, re.DOTALL)
    theirs = {name: body for body, name in shown if f"class {name}(" in source or f"class {name}:" in source}
    declared = set(re.findall(r"^class (\w+)", source, re.MULTILINE)) - {"Convolutional"}  # trained, but not shown
    assert set(theirs) == declared
    for name, body in theirs.items():
        assert body.strip() in source, f"{name}: the page and the example differ"


def test_dates_are_taught_by_adapters_inside_the_budget(tmp_path, capsys):
    module, words = example("finetune_dates"), speech()
    asked = module.arguments(["none", str(tmp_path), "--examples", "30", "--held-back", "4", "--steps", "6", "--seq-len", "128",
                              "--rank", "2", "--memory-budget", "4MB", "--threads", "1", "--lr", "1e-2"])
    base = cllm.Model(Llama(vocab_size=words.tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, d_ff=32, max_seq_len=128,
                            n_kv_heads=2, tied=True))
    before = {name: values.copy() for name, values in base.parameters.items()}
    found = module.tune(base, words, asked)
    assert found["total_bytes"] <= found["budget_bytes"] == 4_000_000
    assert [one["step"] for one in found["evaluations"]] == [0, 1, 2, 3, 4, 5, 6] and len(found["losses"]) == 6
    assert found["evaluations"][-1]["val_loss"] < found["evaluations"][0]["val_loss"]
    assert found["right_before"] == sum(said[1] == wanted(said[0]) for said in found["answers"])
    assert found["right_after"] == sum(said[2] == wanted(said[0]) for said in found["answers"])
    assert all((values == before[name]).all() for name, values in base.parameters.items())
    again = cllm.load_adapter(base, tmp_path / "adapter")
    assert sum(again.parameters[name].size for name in again.program.trained) == found["trained"]
    assert "after: " in capsys.readouterr().out


def wanted(question):
    """The date of a question, read in another way than it was written."""
    year, day = re.search(r"\d{4}", question)[0], re.search(r"\b(\d{1,2})(?!\d)", question)[1]
    names = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
    month = next(number for number, name in enumerate(names, 1) if f" {name}" in question)
    return f"{year}-{month:02}-{int(day):02}"


def test_dates_are_different_and_answers_are_right():
    module = example("finetune_dates")
    made = [one["messages"] for one in module.conversations(500, 3)]
    assert len({answer["content"] for _, answer in made}) == 500
    assert all(answer["content"] == wanted(question["content"]) for question, answer in made)
    assert module.right([answer["content"] for _, answer in made], [{"messages": one} for one in made]) == 500
    assert module.right(["1999-1-1", ""], [{"messages": one} for one in made[:2]]) == 0
