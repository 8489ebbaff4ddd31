"""Runs on what a function of the step returns: any model, resumed to the bit, and whatever the function does is survived."""
import json
from dataclasses import dataclass

import numpy as np
import oracle
import pytest
from click.testing import CliRunner
from families import example
from own_model import Mine, Pictures
from row_models import Kinds

import cllm
from cllm import snapshot
from cllm.cli import main
from cllm.errors import BudgetError, ConfigError, DataError, DtypeError, ShapeError, TokenError
from cllm.train import Callback, Lines, Trainer, read_lines

SMALL = dict(steps=7, eval_every=3, eval_batches=2, snapshot_every=4, threads=1, lr=1e-2, keep=9)


def data_of(architecture, time=None, batch=4, seed=0):
    return lambda number: architecture.example_batch(np.random.default_rng([seed, number]), batch, time)


DROPPING = Kinds(dropout=0.3)
MODELS = {"pictures": (Pictures(), None), "rows of every kind": (DROPPING, 6), "tokens": (Mine(), 6)}


def trainer(name="pictures", out=None, model_seed=1, **more):
    architecture, time = MODELS[name]
    given = {"data": data_of(architecture, time), "eval_data": data_of(architecture, time, 3, seed=9), **SMALL, **more}
    return Trainer(cllm.Model(architecture, model_seed), out=out, **given)


def state_of(trainer, copies):
    return {**copies(trainer.model.parameters), **copies(trainer.optimizer.arrays()), "losses": np.array(trainer.losses[-2:]),
            "steps": np.array([trainer.optimizer.steps, trainer.step]), "validation": np.array(trainer.val_loss)}


class StopAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_event(self, trainer, record):
        if record["event"] == "step" and record["step"] == self.step:
            trainer.stop()


@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_what_its_parts_do_by_hand(name, copies):
    run = trainer(name, seed=3, warmup=2)
    result = run.run()
    (architecture, time), losses, validated = MODELS[name], [], {}
    model = cllm.Model(architecture, 1)
    executor, look = (cllm.Executor(model, batch, time, num_threads=1, seed=3) for batch in (4, 3))
    optimizer, rate = cllm.AdamW(model), cllm.Rate(1e-2, 7, 2, 1e-3)
    for step in range(8):
        if step % 3 == 0 or step == 7:
            batches = [data_of(architecture, time, 3, seed=9)(number) for number in range(2)]
            weights = [batch["importance"].sum() if name == "pictures" else 1 for batch in batches]
            validated[step] = np.average([look.loss(**batch) for batch in batches], weights=weights)
        if step < 7:
            model.zero_grad()
            executor.step = step
            losses.append(executor.loss_and_grad(**data_of(architecture, time)(step)))
            cllm.clip_grad_norm(model, 1.0)
            optimizer.lr = rate(step)
            optimizer.step()
    assert run.losses == losses and result.tokens is None
    oracle.assert_same_bits(copies(run.model.parameters), copies(model.parameters))
    assert result.val_loss == pytest.approx(validated[7], rel=1e-12)
    assert result.best_val_loss == pytest.approx(min(validated[step] for step in (3, 6, 7)), rel=1e-12)


@pytest.mark.parametrize("stop", range(1, 7))
def test_resume_at_any_step_equals_the_straight_run_to_the_last_bit(stop, copies, tmp_path):
    """With dropout, whose masks are those of the step, and batches of two sizes."""
    def data(step):
        return data_of(DROPPING, 6, 4 + step % 2)(step)

    straight = trainer("rows of every kind", data=data)
    straight.run()
    stopped = trainer("rows of every kind", tmp_path, data=data, callbacks=[StopAfter(stop)])
    assert stopped.run().interrupted
    resumed = trainer("rows of every kind", tmp_path, model_seed=8, data=data, resume=True)
    assert resumed.step == stop
    resumed.run()
    oracle.assert_same_bits(state_of(resumed, copies), state_of(straight, copies)
                            | {"losses": np.array(straight.losses[stop:][-2:])})


def test_bits_depend_on_no_plan_budget_or_thread_count(copies):
    runs = [trainer("rows of every kind", **more) for more in ({}, {"strategy": "recompute@1"}, {"memory_budget": "1MB"},
                                                               {"threads": 2})]
    for run in runs:
        run.run()
        oracle.assert_same_bits(state_of(run, copies), state_of(runs[0], copies))


def test_what_it_tells(tmp_path, capsys):
    run = trainer("pictures", tmp_path / "run", callbacks=[Lines()], log_every=1)
    run.run()
    said = capsys.readouterr().out
    assert "batches of a function to train on, others to validate, 4 a step, 7 steps, adamw" in said
    assert " /s  memory" in said and "tok/s" not in said and "perplexity" not in said
    steps = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if line["event"] == "step"]
    assert all(line["tokens_per_second"] is None for line in steps)
    assert all(line["examples_per_second"] * line["seconds"] == pytest.approx(4) for line in steps)
    kept = json.loads((tmp_path / "run" / "step-000007" / "state.json").read_text())["training"]["data"]
    assert kept == {"drawn": True, "text": None, "tokens": None, "sha256": run.source.sha256, "tokenizer": None}
    language = trainer("tokens", callbacks=[Lines()], log_every=1)
    language.run()
    said = capsys.readouterr().out
    assert "others to validate, 4 x 6 a step" in said and " tok/s " in said and " nats, perplexity " in said
    loaded, state = snapshot.load_snapshot(tmp_path / "run" / "step-000004", architecture=Pictures)
    assert loaded.architecture == Pictures() and state["step"] == 4


def test_without_evaluation_data_nothing_is_evaluated(tmp_path):
    run = trainer(out=tmp_path, eval_data=None)
    assert run.run().val_loss is None
    assert {line["event"] for line in read_lines(tmp_path / "metrics.jsonl")} == {"step", "snapshot"}
    with pytest.raises(ConfigError, match="needs something to evaluate on"):
        run.evaluate()
    assert trainer().evaluate(1) != trainer().evaluate(2)


def test_hours_and_batches_by_hand():
    model = cllm.Model(Pictures(), 1)
    settings = {name: value for name, value in SMALL.items() if name != "steps"}
    timed = Trainer(model, data=data_of(Pictures()), eval_data=data_of(Pictures()), hours=1e-9, **settings)
    assert timed.settings.steps == 1 and any("hours" in note for note in timed.notes)
    by_hand, run = trainer(eval_data=None), trainer(eval_data=None)
    for step in range(3):
        assert by_hand.train_step(data_of(Pictures())(step)) == run.train_step()
    with pytest.raises(ConfigError, match="label: must be fed"):
        by_hand.train_step({**data_of(Pictures())(0), "label": None})


# ---------------------------------------------------------------------------------------------------- what is refused

def changed(at, **changes):
    """Data whose batch of one step is changed."""
    def data(step):
        return {**data_of(Pictures())(step), **(changes if step == at else {})}

    return data


WRONG = [
    ({"label": None}, ConfigError, "label: must be fed; got None"),
    ({"labels": np.zeros(4, int)}, ShapeError, "labels: must have the axes of a feed of the model"),
    ({"label": np.zeros((4, 1), int)}, ShapeError, r"label: must have the axes B; got \(4, 1\)"),
    ({"label": np.zeros(5, int)}, ShapeError, r"label: must have the shape \(batch_size\) = \(4,\)"),
    ({"label": np.zeros(4)}, DtypeError, "label: must hold integers; got float64"),
    ({"picture": np.zeros((4, 12), "c8")}, DtypeError, "picture: must hold numbers"),
    ({"label": np.array([0, 1, 2, 4])}, TokenError, "label: must be from 0 to 3; got 4"),
    ({"picture": np.full((4, 12), 7.0)}, TokenError, "picture: must be at least 0.0 and below 1.5"),
    ({"picture": [[1.0], [1.0, 2.0]]}, ShapeError, "picture: must be an array"),
    ({"importance": np.zeros(4)}, TokenError, "importance: must give the loss a divisor above zero"),
    ({n: np.zeros((0, *s)) for n, s in (("picture", (12,)), ("importance", ()))} | {"label": np.zeros(0, int)}, ConfigError,
     "batch_size: must be a whole number from 1"),
]


@pytest.mark.parametrize("changes, kind, match", WRONG, ids=[match for *_, match in WRONG])
def test_what_cannot_be_fed_is_refused_at_once_or_ends_the_run_after_a_snapshot(changes, kind, match, tmp_path):
    at_once = "importance" not in changes or len(changes["importance"]) == 0  # a divisor is the head's, of a step
    if at_once:
        with pytest.raises(kind, match=rf"^data\(0\), {match}"):
            trainer(out=tmp_path / "refused", data=changed(0, **changes))
        with pytest.raises(kind, match=rf"^eval_data\(0\), {match}"):
            trainer(out=tmp_path / "refused", eval_data=changed(0, **changes))
        assert not (tmp_path / "refused").exists()
    run = trainer(out=tmp_path / "run", data=changed(5, **changes))
    with pytest.raises(kind, match=rf"^data\(5\), {match}" if at_once else match):
        run.run()
    assert run.step == 5 and [p.name for p in snapshot.snapshots(tmp_path / "run")][-1] == "step-000005"


class Unknown(Exception):
    """What no library knows."""


@pytest.mark.parametrize("error", [Unknown("the disk went"), KeyError("x"), StopIteration(), SystemError("odd")])
def test_a_function_that_raises_ends_the_run_after_a_snapshot_with_what_it_raised(error, copies, tmp_path):
    def failing(at, seed=0):
        def data(number):
            if number == at:
                raise error
            return data_of(Pictures(), seed=seed)(number)

        return data

    for name in ("data", "eval_data"):
        with pytest.raises(type(error)):
            trainer(out=tmp_path / "refused", **{name: failing(0)})
    assert not (tmp_path / "refused").exists()
    straight = trainer()
    straight.run()
    run = trainer(out=tmp_path / "run", data=failing(5))
    with pytest.raises(type(error)) as caught:
        run.run()
    assert caught.value is error and snapshot.snapshots(tmp_path / "run")[-1].name == "step-000005"
    resumed = trainer(out=tmp_path / "run", resume=True)
    resumed.run()
    oracle.assert_same_bits(state_of(resumed, copies), state_of(straight, copies))
    looked = trainer(out=tmp_path / "looked", eval_data=failing(1, seed=9))
    with pytest.raises(type(error)):
        looked.run()
    assert looked.step == 0, "the first evaluation fails: nothing was trained, nothing is kept"
    assert not snapshot.snapshots(tmp_path / "looked")


@pytest.mark.parametrize("value", [np.zeros(3), [("picture", 1)], None, "batch"])
def test_what_returns_no_feeds_by_name_is_refused(value):
    with pytest.raises(ConfigError, match=r"^data\(0\): must return every feed by name; got .*picture, label, importance"):
        trainer(data=lambda step: value)


def test_a_function_that_draws_otherwise_each_time_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match=r"data\(0\): must be the same batch each time.*default_rng\(\[seed, step\]\)"):
        trainer(data=lambda step: Pictures().example_batch(rng, 4, None))


@pytest.mark.parametrize("more, match", [
    ({"data": 3}, r"Trainer\(data=...\): must be a function of a number"),
    ({"eval_data": []}, r"Trainer\(eval_data=...\): must be a function of a number"),
    ({"text": "book.txt"}, "beside what a run on a text has; got text"), ({"tokenizer": cllm.ByteTokenizer()}, "got tokenizer"),
    *(({name: value}, f"beside what a run on a text has; got {name}") for name, value in
      {"batch_size": 4, "seq_len": 8, "accumulate": 1, "val_fraction": 0, "sample_prompt": "a"}.items()),
    ({"sample_every": 1}, r"sample_every=...\): needs a tokenizer and a prompt that data knows; got none of these"),
    ({"data": None}, r"eval_data=...\): must go with data"),
    ({"data": None, "eval_data": None}, r"needs a model that is fed tokens \(B T\) and targets \(B T\), and nothing else; "
     r"got picture \(N 12\), label \(B\), importance \(B\)")])
def test_what_does_not_go_together_is_refused(more, match):
    with pytest.raises(ConfigError, match=match):
        trainer(**more)


def test_a_budget_is_kept_or_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(BudgetError):
        trainer(out=tmp_path / "run", memory_budget=1000)
    assert not (tmp_path / "run").exists()
    wide = cllm.plan(DROPPING, 64, 6).total_bytes
    run = trainer("rows of every kind", data=data_of(DROPPING, 6, 64), eval_data=None, memory_budget=wide // 2)
    run.run()
    assert run.executors.total_bytes <= wide // 2


def test_a_run_goes_on_as_it_began(tmp_path):
    trainer(out=tmp_path / "drawn", callbacks=[StopAfter(2)]).run()
    with pytest.raises(ConfigError, match="must be given again when such a run is resumed, and only then; got nothing"):
        Trainer(cllm.Model(Pictures()), out=tmp_path / "drawn", resume=True)
    with pytest.raises(DataError, match=r"data\(0\): must be the batch with which the run began; got another"):
        trainer(out=tmp_path / "drawn", data=data_of(Pictures(), seed=4), resume=True)
    assert trainer(out=tmp_path / "drawn", eval_data=None, resume=True).run().step == 7
    tokens = np.arange(400) % 31
    Trainer(cllm.Model(Mine()), tokens, tmp_path / "text", steps=1, seq_len=8, batch_size=2).run()
    with pytest.raises(ConfigError, match="got a function for a run on a text"):
        Trainer(cllm.Model(Mine()), out=tmp_path / "text", data=data_of(Mine(), 8), resume=True)


def test_the_command_says_that_a_family_reads_no_text(tmp_path):
    file = example("mixer").__file__
    for more in ([], ["--memory-budget", "1GB"]):
        result = CliRunner().invoke(main, ["train", "--model", f"{file}:Mixer", "--out", str(tmp_path / "run"), *more])
        assert result.exit_code == 1 and not (tmp_path / "run").exists()
        assert "needs a model that is fed tokens (B T) and targets (B T), and nothing else; got image (B 16 16), label (B)" \
            in result.output and "cllm.Trainer(model, data=...)" in result.output


def test_a_step_whose_numbers_are_not_finite_is_passed_over():
    @dataclass(frozen=True)
    class Unbounded(Pictures):
        def wire(self, w):
            x = w.add("fc", cllm.layers.Linear(I=self.pixels, O=self.C, std=0.5), x=w.feed("picture", f"B {self.pixels}"))
            w.add("head", cllm.layers.CrossEntropyHead(V=self.classes, C=self.C), {"targets": "label"}, x=x)

        def example_batch(self, rng, batch_size, seq_len):
            batch = super().example_batch(rng, batch_size, seq_len)
            return {name: batch[name] for name in ("picture", "label")}

    def data(step):
        return {**data_of(Unbounded())(step), **({"picture": np.full((4, 12), np.nan)} if step == 2 else {})}

    run = Trainer(cllm.Model(Unbounded(), 1), data=data, **SMALL)
    assert run.run().step == 7 and len(run.losses) == 6
