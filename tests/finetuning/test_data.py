"""Batches by number: packed and padded, epoch after epoch; trained on and resumed; what is lost is said."""
import json

import numpy as np
import oracle
import pytest
from families import example
from letters import END, START, Letters, speech

import cllm

CONFIG = {**oracle.CONFIG, "vocab_size": 110, "max_seq_len": 48}


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def sums(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{"prompt": f"{'what is ' * (k % 3)}{a}+{b}=", "completion": str(a + b)}
            for k, (a, b) in enumerate(rng.integers(0, 400, (count, 2)).tolist())]


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "sums.jsonl", sums(30))


def data_of(file, **settings):
    return cllm.FineTuningData(file, speech(), **{"batch_size": 2, "seq_len": 48, "seed": 3, **settings})


def found(data, batch):
    """The examples in a batch, each as its tokens and targets, in order of rows."""
    known = {(one.tokens.tobytes(), one.targets.tobytes()): number for number, one in enumerate(data.examples)}
    numbers = []
    for row in range(len(batch["tokens"])):
        places = batch["positions"][row] if "positions" in batch else np.arange(batch["tokens"].shape[1])
        starts = [*np.flatnonzero(places == 0), len(places)]
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            if (batch["targets"][row, start:stop] != -1).any():
                last = stop if "positions" in batch else int(np.flatnonzero(batch["targets"][row] != -1).max()) + 1
                part = (batch[name][row, start:last].tobytes() for name in ("tokens", "targets"))
                numbers.append(known[tuple(part)])
    return numbers


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_has_every_example_once_and_the_next_another_order(file, packing):
    data = data_of(file, packing=packing, batch_size=1 if packing else 2)
    epochs = [[found(data, data(number)) for number in range(k * len(data), (k + 1) * len(data))] for k in (0, 1, 2)]
    for epoch in epochs:
        assert sorted(e for batch in epoch for e in batch) == sorted(found_again(data))
    assert epochs[0] != epochs[1] != epochs[2]


def found_again(data):
    """The numbers of all examples, as `found` tells those that are alike."""
    known = {(one.tokens.tobytes(), one.targets.tobytes()): number for number, one in enumerate(data.examples)}
    return [known[one.tokens.tobytes(), one.targets.tobytes()] for one in data.examples]


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_depends_on_its_number_the_files_and_the_seed_alone(file, packing):
    one, other, seeded = (data_of(file, packing=packing, seed=seed) for seed in (3, 3, 4))
    for number in (0, 7, 100):
        oracle.assert_same_bits(other(number), one(number))
    assert other.sha256 == one.sha256 != seeded.sha256
    batches = [[data(number)["tokens"] for number in range(len(data))] for data in (one, seeded)]
    assert any(not np.array_equal(a, b) for a, b in zip(*batches, strict=True))


def test_padding_is_trained_on_nowhere_and_lengths_are_rounded_up(file):
    data = data_of(file, packing=False)
    for number in range(len(data)):
        batch = data(number)
        assert set(batch) == {"tokens", "targets"} and batch["tokens"].shape in ((2, 32), (2, 48))
        assert (batch["targets"] != -1).sum() == sum(data.examples[e].count for e in found(data, batch))
    assert data.used < 0.7 < data_of(file).used


def mean_one_by_one(model, data):
    total = 0.0
    for one in data.examples:
        executor = cllm.Executor(model, 1, len(one.tokens), strategy="recompute")
        total += executor.loss(one.tokens[None], one.targets[None]) * one.count
    return total / data.targets


@pytest.mark.parametrize("packing", [True, False])
def test_an_evaluation_is_the_mean_over_the_targets_of_every_example(file, packing, tmp_path):
    data = data_of(file, packing=packing, batch_size=4, evaluation=True)
    model = cllm.GPT(cllm.ModelConfig(**CONFIG), seed=1)
    for parameter in model.parameters.values():
        parameter *= 10  # attention has to matter to the loss
    trainer = cllm.Trainer(model, data=data_of(file), eval_data=data, steps=1, eval_batches=1000)
    assert trainer.source.evaluation_calls(1000) == len(data) and trainer.source.evaluation_calls(1) == 1
    assert trainer.evaluate() == pytest.approx(mean_one_by_one(model, data), rel=1e-6)
    seen = sorted(e for number in range(len(data)) for e in found(data, data(number)))
    assert seen == sorted(found_again(data))
    oracle.assert_same_bits(data(len(data)), data(0))


@pytest.mark.parametrize("packing", [True, False])
def test_a_run_that_is_resumed_equals_the_straight_run(file, packing, tmp_path):
    def trainer(out, steps, **more):
        model = cllm.GPT(cllm.ModelConfig(**CONFIG), seed=1)
        return cllm.Trainer(model, out=out, data=data_of(file, packing=packing), steps=steps, eval_every=100, rate="constant",
                            warmup=0, **more)

    straight = trainer(None, 7)
    straight.run()
    trainer(tmp_path / "run", 3).run()
    resumed = trainer(tmp_path / "run", 7, resume=True)
    resumed.run()
    oracle.assert_same_bits(dict(resumed.model.parameters), dict(straight.model.parameters))
    assert straight.losses[3:] == resumed.losses and straight.losses[-1] < straight.losses[0]


def test_a_run_does_not_go_on_with_other_examples(file, tmp_path):
    """Nor where the first batch is the same."""
    def trainer(**more):
        return cllm.Trainer(cllm.GPT(cllm.ModelConfig(**CONFIG)), out=tmp_path / "run", data=data_of(file), steps=1,
                            eval_every=9, **more)

    trainer().run()
    trainer(resume=True)
    before, lines = data_of(file), sums(30)
    other = next(k for k in range(30) if before.examples[k].tokens.tobytes() not in
                 {before.examples[seen].tokens.tobytes() for seen in found(before, before(0))})
    lines[other]["completion"] = "x" * len(lines[other]["completion"])
    written(file, lines)
    oracle.assert_same_bits(data_of(file)(0), before(0))
    with pytest.raises(cllm.DataError, match="must be the batch with which the run began"):
        trainer(resume=True)


def test_the_step_tells_targets_a_second(file):
    records = []

    class Listening(cllm.Callback):
        def on_event(self, trainer, record):
            records.append(record)

    data = data_of(file)
    cllm.Trainer(cllm.GPT(cllm.ModelConfig(**CONFIG)), data=data, steps=1, callbacks=[Listening()]).run()
    step = records[0]
    count = int((data(0)["targets"] != -1).sum())
    assert step["tokens_per_second"] == pytest.approx(count / step["seconds"])


def test_a_snapshot_knows_the_tokenizer(file, tmp_path):
    """So a run's text can be read, in samples and in `cllm sample`."""
    pytest.importorskip("tokenizers", reason="needs the extra io")
    tokenizer = cllm.BPETokenizer.train([file.read_text()], 300)
    data = cllm.FineTuningData(file, tokenizer, 2, 48)
    model = cllm.GPT(cllm.ModelConfig(**{**CONFIG, "vocab_size": 300}))
    trainer = cllm.Trainer(model, out=tmp_path / "run", data=data, steps=1)
    result = trainer.run()
    assert (result.snapshot / "tokenizer.json").read_text() == tokenizer.definition
    assert trainer.source.describe()["tokenizer"] == tokenizer.name
    assert isinstance(trainer.sample("1+1=", 2), str)


def test_packed_rows_need_a_model_with_a_packed_form(file):
    encoder = example("encoder").Encoder(n_heads=2, vocab_size=110, max_seq_len=48, n_layers=1, d_model=8, d_ff=12)
    with pytest.raises(cllm.CllmError, match="must have a packed form"):
        cllm.Trainer(cllm.Model(encoder), data=data_of(file), steps=1)


def test_what_is_cut_and_what_is_left_out_is_said(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": "a" * 60}, {"prompt": "p" * 50, "completion": "c"}, {"text": "short"}])
    data = data_of(path)
    assert data.notes == [
        f"2 of 3 examples are longer than seq_len = 48 and are cut: 15 tokens, 14 of them trained on, are left out (the first: "
        f"{path}, line 1)", f"1 of 3 examples have nothing to train on and are left out (the first: {path}, line 2)"]
    assert len(data.examples) == 2 and data.tokens == 48 + 5 and data.targets == 48 + 5
    assert "2 examples of 53 tokens, 53 of them trained on, in 2 rows of 48, 55.2 % used; 1 batches an epoch" == data.in_words()
    unended = cllm.FineTuningData(path, Letters(), 2, 48)
    assert unended.notes[-1] == "the tokenizer has no token that ends a text: none is put after texts and completions"


def test_examples_are_shown_for_people(tmp_path):
    lines = [{"messages": [{"role": "user", "content": "Hi\\"}, {"role": "assistant", "content": "Ho"}]}, {"text": "ab"}]
    path = written(tmp_path / "a.jsonl", lines)
    assert data_of(path, seq_len=48).show(5) == f"""example 1 ({path}, line 1): 25 tokens, 4 of them trained on
        | {START}·u·s·e·r·\\n·H·i·\\\\·{END}·\\n·{START}·a·s·s·i·s·t·a·n·t·\\n
  train | H·o·{END}·\\n

example 2 ({path}, line 2): 2 tokens, 2 of them trained on
        | a
  train | b·<|end|>"""


def test_several_files_are_one_after_the_other(file, tmp_path):
    other = written(tmp_path / "b.jsonl", [{"text": "more"}])
    assert data_of([file, other]).examples[-1].where == f"{other}, line 1"


@pytest.mark.parametrize("settings, must", [
    ({"batch_size": 0}, "batch_size"), ({"seq_len": 0}, "seq_len"), ({"packing": 2}, "packing"), ({"turns": "some"}, "turns"),
    ({"seed": -1}, "seed"), ({"evaluation": "no"}, "evaluation")])
def test_settings_that_mean_nothing_are_refused(file, settings, must):
    with pytest.raises(cllm.ConfigError, match=must):
        data_of(file, **settings)


def test_other_refusals(file, tmp_path):
    with pytest.raises(cllm.ConfigError, match="must be a Speech, a tokenizer, or the path of a model"):
        cllm.FineTuningData(file, 3, 1, 8)
    with pytest.raises(cllm.DataError, match="must be a tokenizer.json"):
        cllm.FineTuningData(file, tmp_path, 1, 8)
    with pytest.raises(cllm.DataError, match="must have an example with a target"):
        data_of(written(tmp_path / "a.jsonl", [{"prompt": "p" * 50, "completion": "c"}]))
    with pytest.raises(cllm.DataError, match="must have an example with a target"):
        data_of([])
    with pytest.raises(cllm.ConfigError, match="number"):
        data_of(file)(-1)
    chats = written(tmp_path / "b.jsonl", [{"text": "fine"}, {"messages": [{"role": "assistant", "content": "a"}]}])
    with pytest.raises(cllm.DataError, match="b.jsonl, line 2: .*got an answer before anything was asked"):
        data_of(chats)
    with pytest.raises(cllm.ConfigError, match="chat template"):
        cllm.FineTuningData(written(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": "a"}, {
            "role": "assistant", "content": "b"}]}]), Letters(), 1, 8)


def test_a_template_that_refuses_messages_is_told_by_line(tmp_path):
    pytest.importorskip("jinja2", minversion="3.1.6", reason="needs the extra hf")
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{{ messages[0].content }}"
    path = written(tmp_path / "a.jsonl", [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                                                        {"role": "assistant", "content": "a"}]}])
    with pytest.raises(cllm.DataError, match="line 1: .*user first"):
        cllm.FineTuningData(path, speech(template=template), 1, 8)
