"""What is trained is said by patterns; what cannot be meant is refused with the reason."""
import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

import cllm
from cllm.optim import Grouped, optimizer_named

CONFIG = cllm.ModelConfig(13, 2, 8, 2, 12, 9)


def model(trainable=None):
    return cllm.GPT(CONFIG, trainable=trainable)


def step(made):
    executor = cllm.Executor(made, 2, 5)
    executor.loss_and_grad(*np.random.default_rng(0).integers(0, 13, (2, 2, 5)))
    return executor


def test_patterns_choose_and_none_trains_all():
    made = model("*.ln?.weight")
    assert made.trainable == ("*.ln?.weight",) and set(made.gradients) == {f"blocks.{b}.ln{n}.weight" for b in (0, 1)
                                                                          for n in (1, 2)}
    made.trainable = ["head*", "ln_f.*"][1:]
    assert list(made.gradients) == ["ln_f.weight", "ln_f.bias"] == list(made.program.trained)
    made.trainable = None
    assert list(made.gradients) == list(made.parameters) and made.trainable is None


def test_a_pattern_that_matches_nothing_names_what_is_near():
    made = model("ln_f.*")
    for change in (lambda: setattr(made, "trainable", "blocks.0.mpl.fc1.weight"), lambda: model("blocks.0.mpl.fc1.weight"),
                   lambda: cllm.plan(CONFIG, 2, 5, trainable=("ln_f.*", "blocks.0.mpl.fc1.weight"))):
        with pytest.raises(cllm.ConfigError, match=r"every pattern must match .*'blocks.0.mpl.fc1.weight'.*"
                                                   r"nearest names are blocks.0.mlp.fc1.weight"):
            change()
    assert made.trainable == ("ln_f.*",) and list(made.gradients) == ["ln_f.weight", "ln_f.bias"]


@pytest.mark.parametrize("patterns", [3, [3], (None,)])
def test_what_is_no_pattern_is_refused(patterns):
    with pytest.raises(cllm.ConfigError, match="must be patterns of parameter names"):
        model(patterns)


def test_nothing_to_train_is_refused_where_training_is_asked_and_nowhere_else(tmp_path):
    made = model(())
    executor = cllm.Executor(made, 2, 5)
    assert np.isfinite(executor.loss(*np.zeros((2, 2, 5), int)))
    for ask in (lambda: step(made), lambda: cllm.AdamW(made), lambda: Grouped(made, {"*": (cllm.SGD, {"lr": 0.1})}),
                lambda: cllm.plan(made, 2, 5), lambda: cllm.Trainer(made, b"text" * 200, batch_size=2, seq_len=5)):
        with pytest.raises(cllm.ConfigError, match="must have a parameter to train"):
            ask()


def test_executors_and_optimizers_from_before_are_refused():
    made = model()
    executor = step(made)
    adam, groups = cllm.AdamW(made), optimizer_named("*bias=sgd,adam", made, 0.1)
    made.trainable = "*.fc1.*"
    with pytest.raises(cllm.ConfigError, match=r"loss_and_grad: .*made for what the model trains now.*again"):
        executor.loss_and_grad(*np.zeros((2, 2, 5), int))
    for optimizer in (adam, groups):
        with pytest.raises(cllm.OptimizerError, match="made for what the model trains now"):
            optimizer.step()
    made.trainable = "*"  # all again, but gradients are made anew
    for stale in (lambda: executor.loss_and_grad(*np.zeros((2, 2, 5), int)), adam.step, groups.step):
        with pytest.raises(cllm.CllmError, match="what the model trains now"):
            stale()
    made.trainable = None  # the same
    step(made)
    cllm.AdamW(made).step()


def test_optimizers_move_what_is_trained_and_patterns_mean_it():
    made = model("*.fc?.*")
    optimizer = cllm.AdamW(made)
    assert set(optimizer.names) == set(made.gradients) and len(optimizer.state) == 8
    with pytest.raises(cllm.OptimizerError, match="match a parameter that is trained; got 'ln_f"):
        cllm.AdamW(made, names="ln_f.*")
    assert cllm.clip_grad_norm(made, 1.0) == 0.0 and set(cllm.clip_each_grad_norm(made, 1.0)) == set(made.gradients)
    grouped = optimizer_named("*bias=sgd,adam", made, 0.1)
    assert {n for group in grouped.groups.values() for n in group.names} == set(made.gradients)


def test_copies_train_what_their_model_trains():
    made = model("*.fc1.*")
    step(made)
    for other in (made.copy(), pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert other.trainable == made.trainable and list(other.gradients) == list(made.gradients)
    optimizer = copy.deepcopy(cllm.AdamW(made))
    optimizer.step()


def test_the_first_gradient_that_is_not_finite_is_looked_for_among_the_trained():
    made = model("blocks.0.*")
    executor = step(made)
    made.parameters["blocks.0.mlp.fc1.weight"][...] = 3e38
    with pytest.raises(cllm.NonFiniteError):
        executor.loss_and_grad(*np.zeros((2, 2, 5), int))


def test_a_resumed_run_trains_what_it_began_with(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(bytes(range(13)) * 40)
    settings = dict(steps=4, batch_size=2, seq_len=5, eval_every=2, snapshot_every=2, warmup=0, val_fraction=0.2)

    def train(out, steps, trainable=(), resume=False, **more):
        made = cllm.GPT(replace(CONFIG, vocab_size=256), trainable=more.pop("of_model", None))
        chosen = {"trainable": trainable} if trainable != () else {}
        trainer = cllm.Trainer(made, text, tmp_path / out, resume=resume, **{**settings, "steps": steps}, **chosen, **more)
        trainer.run()
        return trainer

    straight = train("straight", 4, "*.fc1.*")
    assert set(straight.optimizer.names) == {f"blocks.{b}.mlp.fc1.{kind}" for b in (0, 1) for kind in ("weight", "bias")}
    assert straight.settings.trainable == ("*.fc1.*",) == straight.model.trainable
    fresh = cllm.GPT(straight.model.config)
    assert straight.model.parameters["ln_f.weight"].tobytes() == fresh.parameters["ln_f.weight"].tobytes()
    train("broken", 2, "*.fc1.*", min_lr=1e-4)
    with pytest.raises(cllm.ConfigError, match=r"trainable \('\*.fc1.\*',\) there, \('\*.fc2.\*',\) now"):
        train("broken", 4, "*.fc2.*", resume=True)
    with pytest.raises(cllm.ConfigError, match=r"trainable \('\*.fc1.\*',\) there, \('\*.fc2.\*',\) now"):
        train("broken", 4, of_model="*.fc2.*", resume=True)
    resumed = train("broken", 4, resume=True)
    assert resumed.model.trainable == ("*.fc1.*",)
    train("whole", 2)
    with pytest.raises(cllm.ConfigError, match="trainable None there"):
        train("whole", 4, "*.fc2.*", resume=True)


def test_a_snapshot_goes_into_an_optimizer_of_what_it_trained(tmp_path):
    from cllm.snapshot import load_snapshot, write_snapshot
    made = model("*.fc1.*")
    path = write_snapshot(tmp_path, 3, made, cllm.AdamW(made))
    loaded, _ = load_snapshot(path)
    assert loaded.trainable == ("*.fc1.*",)
    other = model("*.fc2.*")
    before = {name: array.copy() for name, array in other.parameters.items()}
    with pytest.raises(cllm.SnapshotError, match=r"trains \('\*.fc2.\*',\); got one that trains \['\*.fc1.\*'\]"):
        load_snapshot(path, other, cllm.AdamW(other))
    assert all(array.tobytes() == before[name].tobytes() for name, array in other.parameters.items())
    load_snapshot(path, other)  # weights go anywhere
    same = model(["*.fc1.bias", "*.fc1.weight"])
    load_snapshot(path, same, cllm.AdamW(same))
