"""A user's own layers and model, in a user's own file: everything works on them, and what is wrong is refused with words."""
from dataclasses import dataclass, replace

import numpy as np
import pytest
from families import example
from own_model import Mine, Pictures, Scale

import cllm
from cllm.program.declare import HANDED


def test_a_language_model_of_ones_own_trains_resumes_and_speaks(tmp_path):
    """The rest that works on it: bits over plans and gradients are the laws' (tests/laws)."""
    class Stop(cllm.Callback):
        def on_event(self, trainer, record):
            if record["event"] == "step" and record["step"] == 2:
                trainer.stop()

    def trainer(out, seed=0, **more):
        model = cllm.Model(example("your_own_layer").Convolutional(n_layers=1, d_model=8, d_ff=8), seed)
        return cllm.Trainer(model, None, tmp_path / out, steps=4, batch_size=2, seq_len=16, eval_batches=1, threads=1, **more)

    straight, stopped = trainer("straight"), trainer("stopped", callbacks=[Stop()])
    straight.run()
    assert stopped.run().interrupted
    resumed = trainer("stopped", seed=1, resume=True)
    resumed.run()
    assert resumed.losses == straight.losses[2:]
    for name, parameter in straight.model.parameters.items():
        assert parameter.tobytes() == resumed.model.parameters[name].tobytes(), name
    assert len(straight.sample("It", 5).encode()) >= 5


def test_the_divisor_of_a_weighted_loss_is_that_of_the_whole_batch():
    model = cllm.Model(Pictures(), seed=3)
    batch = Pictures().example_batch(np.random.default_rng(0), 4, None)
    loss = cllm.Executor(model, 4, strategy="cache@1").loss(**batch)
    each = [cllm.Executor(model, 1).loss(**{n: a[i:i + 1] for n, a in batch.items()}) for i in range(4)]
    assert loss == pytest.approx(np.average(each, weights=batch["importance"]), rel=1e-6)
    with pytest.raises(cllm.TokenError, match="divisor above zero"):
        cllm.Executor(model, 4).loss(**{**batch, "importance": np.zeros(4)})


@pytest.mark.parametrize("change, match", [
    ({"label": np.array([0, 1, 2, 4])}, "label: must be from 0 to 3"),
    ({"label": np.array([0.0, 1, 2, 3])}, "label: must hold integers"),
    ({"label": np.arange(4)[:, None]}, r"label: must have the shape \(batch_size\) = \(4,\)"),
    ({"picture": np.full((4, 12), 2.0)}, "picture: must be at least 0.0 and below 1.5"),
    ({"picture": np.full((4, 12), np.nan)}, "picture: must be at least 0.0"),
    ({"importance": None}, "importance: must be fed"),
    ({"tokens": np.zeros((4, 1), int)}, "tokens: must be one of")])
def test_what_is_fed_is_held_to_its_declaration(change, match):
    model = cllm.Model(Pictures(), seed=3)
    executor = cllm.Executor(model, 4)
    batch = Pictures().example_batch(np.random.default_rng(0), 4, None)
    before = executor.loss(**batch)
    with pytest.raises(cllm.CllmError, match=match):
        executor.loss_and_grad(**{**batch, **change})
    assert not any(g.any() for g in model.gradients.values()) and executor.loss(**batch) == before


def test_feeds_count_in_the_total_bytes():
    narrow, wide = (cllm.plan(Pictures(pixels=p), 4, strategy="cache@2") for p in (12, 20))
    parameters = 8 * 6 * 4 * (1 + 1 + 2)  # of eight more rows: weights, gradients, AdamW's moments
    assert wide.total_bytes - narrow.total_bytes - parameters - (wide.arena_bytes - narrow.arena_bytes) == 8 * (4 + 2) * 4


def test_sequences_have_time_steps_or_have_not():
    for call in (lambda: cllm.plan(Mine(), 2, None), lambda: cllm.plan(Pictures(), 2, 8), lambda: cllm.plan(Mine(), 2, 17)):
        with pytest.raises(cllm.ConfigError, match="seq_len"):
            call()


# what was wrong without a word

def test_a_plan_is_for_the_models_own_program():
    config = cllm.ModelConfig.preset("tiny")
    plan = cllm.plan(cllm.Model(Mine(), dtype="float64"), 2, 8)
    assert plan.arena_bytes == cllm.plan(Mine(), 2, 8, dtype="float64").arena_bytes
    for other in (replace(Mine(), C=16), config, replace(Mine(), n_layers=3, vocab_size=32)):
        with pytest.raises(cllm.PlanError, match="fingerprint|name values|cover blocks"):
            cllm.plan(other, 2, 8, plan, dtype="float64")


def test_a_plan_of_a_model_that_differs_in_one_field_of_a_layer_is_refused():
    plan = cllm.plan(cllm.ModelConfig.preset("tiny"), 2, 8)
    with pytest.raises(cllm.PlanError, match="fingerprint"):
        cllm.plan(cllm.ModelConfig.preset("tiny", norm_eps=1e-6), 2, 8, plan)


@pytest.mark.parametrize("method, fault", [
    ("forward", lambda self, x, weight, *, y: np.multiply(x, weight, out=x)),
    ("accumulate", lambda self, dy, x, *, dweight: np.multiply(dy, x, out=x)),
    ("backward", lambda self, dy, weight, *, dx: np.multiply(dy, weight, out=weight))])
def test_what_a_method_reads_it_cannot_change(method, fault):
    Careless = dataclass(frozen=True)(type("Careless", (Scale,), {method: fault, "__annotations__": {},
                                                                 "__module__": __name__}))

    @dataclass(frozen=True)
    class Model(Mine):
        def wire(self, w):
            x = w.add("embed", cllm.layers.Embedding(V=self.vocab_size, C=self.C, P=self.max_seq_len, kind="none"))
            x = w.add("scale", Careless(C=self.C), x=x)
            w.add("head", cllm.layers.CrossEntropyHead(V=self.vocab_size, C=self.C), x=x)

    model = cllm.Model(Model())
    before = {name: p.copy() for name, p in model.parameters.items()}
    with pytest.raises(ValueError, match="read-only|broadcast"):
        cllm.Executor(model, 2, 4).loss_and_grad(**Model().example_batch(np.random.default_rng(0), 2, 4))
    assert all((model.parameters[name] == p).all() for name, p in before.items())


@pytest.mark.parametrize("wire, match", [
    (lambda w, x: w.add("fc", cllm.layers.Linear(I=9, O=8), x=x),
     r"fc, input x: must have the shape N I, which is \(N 9\); got"),
    (lambda w, x: w.add("a", cllm.layers.Attention(H=2, D=4, C=8), qkv=x), r"a, input qkv: .*\(N 24\)"),
    (lambda w, x: w.add("fc", cllm.layers.Linear(I=8, O=8), {"wieght": "a"}, x=x), "params may name"),
    (lambda w, x: w.add("fc", "Linear", x=x), "must be a cllm.Layer"),
    (lambda w, x: w.feed("loss", "B"), "may not have the name"),
    (lambda w, x: w.feed("image", "3 B"), "the batch must be the first axis"),
    (lambda w, x: w.feed("image", "B Q"), "shapes are made of")])
def test_a_program_that_is_wired_wrong_is_refused(wire, match):
    w = cllm.Wiring()
    x = w.add("embed", cllm.layers.Embedding(V=5, C=8, P=4))
    with pytest.raises(cllm.DeclarationError, match=match):
        wire(w, x)


def test_every_layer_of_ours_declares_the_shapes_of_its_inputs():
    for layer in cllm.layers.LAYERS:
        assert set(layer.reads) == set(layer.inputs), layer.__name__
        assert layer.in_order or not layer.params, layer.__name__


def test_a_shape_is_resolved_with_the_layers_own_letters():
    @dataclass(frozen=True)
    class Twice(cllm.Layer):
        F: int
        G: int
        sites = (cllm.Site("y", "N 2FG", "x twice, G times"),)

        def forward(self, x, *, y):
            y[...] = np.tile(x, 2 * self.G)

        def backward(self, dy, *, dx):
            dx[...] = dy.reshape(len(dy), 2 * self.G, self.F).sum(1)

    w = cllm.Wiring()
    x = w.add("embed", cllm.layers.Embedding(V=5, C=3, P=4))
    assert w.shape_of(w.add("twice", Twice(F=3, G=2), x=x)) == "N 12"
    with pytest.raises(cllm.DeclarationError, match="meaning of their own"):
        dataclass(frozen=True)(type("Bad", (cllm.Layer,), {"__annotations__": {"N": int}, "sites": Scale.sites,
                                                         "forward": lambda self, x, *, y: None,
                                                         "backward": lambda self, dy, *, dx: None}))


def test_a_cut_is_exact_only_where_layers_say_so():
    @dataclass(frozen=True)
    class Unsaid(Scale):
        in_order = None

    @dataclass(frozen=True)
    class Model(Mine):
        def wire(self, w):
            x = w.add("embed", cllm.layers.Embedding(V=self.vocab_size, C=self.C, P=self.max_seq_len))
            x = w.add("scale", Unsaid(C=self.C), x=x)
            w.add("head", cllm.layers.CrossEntropyHead(V=self.vocab_size, C=self.C), x=x)

    assert cllm.plan(Model(), 4, 8).exact and cllm.plan(Model(), 4, 8, "cache@4").exact
    assert not cllm.plan(Model(), 4, 8, "cache@2").exact and cllm.plan(Mine(), 4, 8, "cache@2").exact


# files

def test_loading_runs_nothing_that_a_file_names(tmp_path):
    model = cllm.Model(Mine(), seed=2)
    model.save(tmp_path / "mine.safetensors")
    with pytest.raises(cllm.ConfigError, match="architecture: must be given.*architecture=Mine"):
        cllm.load(tmp_path / "mine.safetensors")
    with pytest.raises(cllm.ConfigError, match="must be the class that was saved"):
        cllm.load(tmp_path / "mine.safetensors", architecture=Pictures)
    again = cllm.load(tmp_path / "mine.safetensors", architecture=Mine)
    assert again.architecture == Mine()
    for name, parameter in model.parameters.items():
        assert parameter.tobytes() == again.parameters[name].tobytes()


def test_a_copy_has_the_weights_and_no_gradients():
    model = cllm.Model(Pictures(), seed=2)
    model.gradients["fc.bias"][...] = 1
    wide = model.copy("float64")
    assert wide.dtype == "float64" and (wide.parameters["fc.weight"] == model.parameters["fc.weight"]).all()
    assert not wide.gradients["fc.bias"].any()


def test_what_is_handed_in_has_no_other_name():
    assert set(HANDED) == {"scale", "key", "loss", "sequence_rows"}


@pytest.mark.parametrize("model", ["Mine", object(), Mine, cllm.layers.Linear(I=1, O=1)])
def test_what_is_no_architecture_is_refused(model):
    for call in (lambda: cllm.Model(model), lambda: cllm.plan(model, 2, 8)):
        with pytest.raises(cllm.ConfigError, match="must be an architecture"):
            call()
