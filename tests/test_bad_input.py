"""Bad input is refused with a `CllmError` that says where, what must hold, what was got and what to do.

Nothing is written: parameters, gradients and the step are as before, and a good call works afterwards. Nothing crashes:
shapes, dtypes and values are fuzzed.
"""
import math

import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cllm

B, T, V = 2, 5, 13


def assert_refused(call, *arguments, expected=None, **named):
    """The call raises a CllmError (of the expected kind) whose text carries all four parts."""
    with pytest.raises(expected or cllm.CllmError) as caught:
        call(*arguments, **named)
    error = caught.value
    assert isinstance(error, cllm.CllmError)
    text = str(error)
    for part in ("where", "must", "got", "do"):
        value = getattr(error, part)
        assert isinstance(value, str) and value.strip() and value in text, f"{part} of: {text}"
    assert error.do[0].isupper() and error.do.endswith("."), f"what to do is a sentence: {text}"
    return error


def test_assert_refused_can_fail():
    def raises(error):
        raise error

    assert_refused(raises, cllm.CllmError("f(x)", "must be 1", "2", "Pass 1."))
    for wrong in (cllm.CllmError("f(x)", "must be 1", "2", ""), cllm.CllmError("", "must be 1", "2", "Pass 1."),
                  cllm.CllmError("f(x)", "must be 1", "2", "pass 1")):
        with pytest.raises(AssertionError):
            assert_refused(raises, wrong)
    with pytest.raises(ValueError):
        assert_refused(raises, ValueError("no part at all"))
    with pytest.raises(pytest.fail.Exception):
        assert_refused(lambda: None)


@pytest.fixture(scope="module")
def trained(new_model):
    """A model with gradients in it and an executor; good tokens and targets."""
    model = new_model(oracle.CONFIG, "float32")
    ex = cllm.Executor(model, batch_size=B, seq_len=T, strategy=cllm.RecomputeAll(micro_batch=1), num_threads=2)
    tokens, targets = oracle.draw_batch(oracle.CONFIG, B, T)
    model.zero_grad()
    ex.loss_and_grad(tokens, targets)
    return model, ex, tokens, targets


def state(model, ex, copies):
    return {"step": ex.step, "parameters": copies(model.parameters), "gradients": copies(model.gradients)}


# ---------------------------------------------------------------------------------------------------- tokens, targets

good = np.zeros((B, T), dtype=np.int64)
BAD_ARRAYS = {
    "a row too many": np.zeros((B + 1, T), int), "a row too few": np.zeros((B - 1, T), int),
    "a column too many": np.zeros((B, T + 1), int), "a column too few": np.zeros((B, T - 1), int),
    "transposed": np.zeros((T, B), int), "one axis": np.zeros(B * T, int), "three axes": np.zeros((B, T, 1), int),
    "no axis": np.array(3), "no rows": np.zeros((0, T), int), "no columns": np.zeros((B, 0), int),
    "float": np.zeros((B, T)), "float32": np.zeros((B, T), np.float32), "bool": np.zeros((B, T), bool),
    "complex": np.zeros((B, T), complex), "text": np.full((B, T), "a"), "objects": np.full((B, T), None, object),
    "dates": np.zeros((B, T), "datetime64[s]"), "records": np.zeros((B, T), [("a", int)]),
    "id V": good + V, "id far too large": good + 2 ** 40, "id past 32 bits": good + 2 ** 32,
    "id past 63 bits": np.full((B, T), 2 ** 64 - 1, np.uint64), "id -2": good - 2, "least id": good + np.iinfo(int).min,
    "one bad id, last": np.where(np.arange(B * T).reshape(B, T) == B * T - 1, V, 0),
    "none": None, "a number": 3, "a word": "tokens", "ragged": [[1, 2], [3]], "mapping": {}, "generator": iter(()),
}


@pytest.mark.parametrize("method", ["loss_and_grad", "loss", "logits"])
@pytest.mark.parametrize("which", BAD_ARRAYS)
def test_bad_tokens(which, method, trained, copies):
    model, ex, tokens, targets = trained
    before = state(model, ex, copies)
    rest = () if method == "logits" else (targets,)
    error = assert_refused(getattr(ex, method), BAD_ARRAYS[which], *rest)
    assert "tokens" in error.where
    oracle.assert_same_bits(state(model, ex, copies), before)


@pytest.mark.parametrize("method", ["loss_and_grad", "loss"])
@pytest.mark.parametrize("which", BAD_ARRAYS)
def test_bad_targets(which, method, trained, copies):
    model, ex, tokens, targets = trained
    before = state(model, ex, copies)
    error = assert_refused(getattr(ex, method), tokens, BAD_ARRAYS[which])
    assert "targets" in error.where
    oracle.assert_same_bits(state(model, ex, copies), before)


def test_token_minus_one_is_no_token(trained):
    _, ex, tokens, targets = trained
    for method in (ex.loss_and_grad, ex.loss):
        assert_refused(method, tokens * 0 - 1, targets, expected=cllm.TokenError)
    assert_refused(ex.logits, tokens * 0 - 1, expected=cllm.TokenError)


@pytest.mark.parametrize("method", ["loss_and_grad", "loss"])
def test_all_targets_ignored(method, trained, copies):
    model, ex, tokens, targets = trained
    before = state(model, ex, copies)
    assert_refused(getattr(ex, method), tokens, targets * 0 - 1, expected=cllm.TokenError)
    oracle.assert_same_bits(state(model, ex, copies), before)


@pytest.mark.parametrize("num_targets", [0, -1, 2.5, math.nan, math.inf, "8", True, [8], 10 ** 30])
def test_bad_num_targets(num_targets, trained, copies):
    model, ex, tokens, targets = trained
    before = state(model, ex, copies)
    assert_refused(ex.loss_and_grad, tokens, targets, num_targets=num_targets)
    oracle.assert_same_bits(state(model, ex, copies), before)


def test_errors_are_of_the_kind_that_fits(trained):
    _, ex, tokens, targets = trained
    assert_refused(ex.loss, tokens[:, :-1].copy(), targets, expected=cllm.ShapeError)
    assert_refused(ex.loss, tokens.astype(float), targets, expected=cllm.DtypeError)
    assert_refused(ex.loss, tokens + V, targets, expected=cllm.TokenError)
    assert issubclass(cllm.ShapeError, ValueError) and issubclass(cllm.DtypeError, TypeError)


@pytest.mark.parametrize("method", ["loss_and_grad", "loss", "logits"])
def test_noncontiguous_tokens_are_read_right_or_refused(method, trained, copies):
    """Views are never misread: either the values that the user sees are used, or a CllmError says to copy."""
    model, ex, tokens, targets = trained
    wide = np.zeros((B, 2 * T), tokens.dtype)
    wide[:, ::2] = tokens
    views = [np.asfortranarray(tokens), wide[:, ::2], tokens[::-1].copy()[::-1], tokens.astype(">i4"),
             np.broadcast_to(tokens[:1], (B, T))]
    rest = () if method == "logits" else (targets,)
    for view in views:
        assert not view.flags.c_contiguous or view.dtype.byteorder == ">"
        model.zero_grad()
        expected = getattr(ex, method)(np.array(view, dtype=np.int64, order="C"), *rest), copies(model.gradients)
        model.zero_grad()
        try:
            got = getattr(ex, method)(view, *rest), copies(model.gradients)
        except cllm.CllmError:
            continue
        oracle.assert_same_bits(got, expected)


def any_array():
    """Arrays of any dtype, of shapes at and around the right one, with values at and around the allowed ones."""
    dtypes = st.one_of(hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes(),
                       hnp.complex_number_dtypes(), hnp.unicode_string_dtypes())
    shapes = st.one_of(st.just((B, T)), st.just((B, T)), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    close = hnp.arrays(np.int64, st.just((B, T)), elements=st.integers(-2, V))
    return st.one_of(close, shapes.flatmap(lambda shape: dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shape))))


def valid(array, lowest):
    return (array.dtype.kind in "iu" and array.shape == (B, T) and array.min() >= lowest and array.max() < V)


@settings(max_examples=150)
@given(tokens=any_array(), targets=any_array())
@example(tokens=good, targets=good)
@example(tokens=good, targets=good - 1)
def test_any_tokens_and_targets_are_used_or_refused(trained, copies, tokens, targets):
    model, ex, good_tokens, good_targets = trained
    before = state(model, ex, copies)
    if valid(tokens, 0) and valid(targets, -1) and (targets.astype(np.int64) != -1).any():
        reference = oracle.run(oracle.CONFIG, model.parameters, tokens, targets)[1]
        oracle.assert_near(ex.loss(tokens, targets), reference, 1e-4)
        ex.loss_and_grad(tokens, targets)
        assert ex.step == before["step"] + 1
        return
    assert_refused(ex.loss_and_grad, tokens, targets)
    assert_refused(ex.loss, tokens, targets)
    oracle.assert_same_bits(state(model, ex, copies), before)
    model.zero_grad()
    assert math.isfinite(ex.loss_and_grad(good_tokens, good_targets))


# --------------------------------------------------------------------------------------- configuration and executor

NOT_A_SIZE = [0, -1, -2 ** 63, 2 ** 63, 10 ** 40, 1.5, 4.0, math.nan, math.inf, "4", None, True, [4], 4 + 0j]
SIZES = ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "max_seq_len")


@pytest.mark.parametrize("value", NOT_A_SIZE, ids=repr)
@pytest.mark.parametrize("name", SIZES)
def test_bad_sizes_of_a_config(name, value):
    error = assert_refused(cllm.ModelConfig, **{**oracle.CONFIG, name: value}, expected=cllm.ConfigError)
    assert name in error.where


@pytest.mark.parametrize("name, value", [
    *[("n_heads", n) for n in (3, 5, 17)], *[("d_model", n) for n in (15, 17)],
    *[(name, value) for name in ("qkv", "positions", "activation", "attention", "loss")
      for value in ("nonsense", "", None, 1, True, ["full"], {})],
    *[(name, value) for name in ("qkv_bias", "out_proj", "tied") for value in (None, 1, 0, "yes", [True])],
    *[("dropout", value) for value in (-0.1, 1.0, 1.5, math.nan, math.inf, None, "0.1", True, [0.1])],
    *[("norm_eps", value) for value in (0.0, -1e-5, math.nan, math.inf, None, "1e-5")],
], ids=repr)
def test_bad_settings_of_a_config(name, value):
    error = assert_refused(cllm.ModelConfig, **{**oracle.CONFIG, name: value}, expected=cllm.ConfigError)
    assert "d_model" in str(error) if name in ("n_heads", "d_model") else name in error.where


@settings(max_examples=200)
@given(changes=st.dictionaries(st.sampled_from(sorted(oracle.CONFIG)),
                               st.one_of(st.integers(-3, 20), st.floats(), st.booleans(), st.none(),
                                         st.text(max_size=3), st.sampled_from(["full", "lattice", "relu", "tanh"])),
                               max_size=4))
def test_any_settings_make_a_model_that_runs_or_are_refused(changes):
    try:
        config = cllm.ModelConfig(**{**oracle.CONFIG, **changes})
    except cllm.CllmError as error:
        assert_refused(cllm.ModelConfig, **{**oracle.CONFIG, **changes}, expected=type(error))
        return
    assert config.d_model % config.n_heads == 0 and min(getattr(config, name) for name in SIZES) >= 1
    ex = cllm.Executor(cllm.GPT(config), batch_size=1, seq_len=min(3, config.max_seq_len), strategy=cllm.RecomputeAll(),
                       num_threads=1)
    tokens = np.zeros((1, min(3, config.max_seq_len)), int)
    assert math.isfinite(ex.loss_and_grad(tokens, tokens))


@pytest.mark.parametrize("name", ["huge", "", None, 3])
def test_unknown_preset(name):
    assert "small" in str(assert_refused(cllm.ModelConfig.preset, name, expected=cllm.ConfigError))


@pytest.mark.parametrize("arguments", [
    dict(seed=-1), dict(seed=1.5), dict(seed="0"), dict(seed=()), dict(dtype="float16"), dict(dtype=""),
    dict(dtype=None), dict(dtype=int), dict(config=None), dict(config="small"), dict(config=dict(oracle.CONFIG)),
], ids=str)
def test_bad_arguments_of_a_model(arguments):
    arguments = {"config": cllm.ModelConfig(**oracle.CONFIG), **arguments}
    assert_refused(cllm.GPT, arguments.pop("config"), **arguments)


@pytest.mark.parametrize("arguments", [
    *[{name: value} for name in ("batch_size", "seq_len", "num_threads") for value in NOT_A_SIZE
      if not (name == "num_threads" and value is None)],
    dict(seq_len=oracle.CONFIG["max_seq_len"] + 1),
    *[dict(strategy=value) for value in ("nonsense", "", "every:", "every:x", "every:0", "every:-1", 3, None, {},
                                         cllm.CacheAll)],
    *[dict(optimizer=value) for value in ("nonsense", "", 3, cllm.AdamW)],
    *[dict(seed=value) for value in (-1, 1.5, "0", 2 ** 64, None)],
    *[dict(determinism_check=value) for value in ("nonsense", None, 1)],
    *[dict(model=value) for value in (None, "small", cllm.ModelConfig(**oracle.CONFIG))],
], ids=str)
def test_bad_arguments_of_an_executor(arguments, new_model):
    given = dict(model=new_model(oracle.CONFIG), batch_size=B, seq_len=T, strategy=cllm.CacheAll(), **{})
    given.update(arguments)
    error = assert_refused(cllm.Executor, given.pop("model"), **given)
    name = next(iter(arguments))
    assert name in str(error) or name == "strategy", f"the argument {name} is not named: {error}"


@pytest.mark.parametrize("make", [
    *[lambda m=m: cllm.CacheAll(micro_batch=m) for m in (0, -1, 1.5, "2", True)],
    lambda: cllm.RecomputeAll(micro_batch=0), lambda: cllm.Selective(micro_batch=-2),
    *[lambda n=n: cllm.EveryNth(n) for n in (0, -1, 1.5, None, "2", True)],
    *[lambda n=n: cllm.Binomial(n) for n in (0, -1, 1.5, None, "2", True)],
    lambda: cllm.Selective(recompute=("nonsense",)), lambda: cllm.Selective(recompute=(3,)),
    lambda: cllm.Selective(recompute="nonsense"), lambda: cllm.Selective(recompute=None),
    lambda: cllm.CacheAll(also=("nonsense",)), lambda: cllm.CacheAll(also=None), lambda: cllm.CacheAll(also=(0,)),
    lambda: cllm.PerBlock({range(0, 1): "nonsense"}, default=cllm.CacheAll()),
    lambda: cllm.PerBlock({range(0, 99): cllm.RecomputeAll()}, default=cllm.CacheAll()),
    lambda: cllm.PerBlock({range(-1, 1): cllm.RecomputeAll()}, default=cllm.CacheAll()),
    lambda: cllm.PerBlock({range(0, 2): cllm.RecomputeAll(), range(1, 2): cllm.CacheAll()}, default=cllm.CacheAll()),
    lambda: cllm.PerBlock({range(0, 1): cllm.RecomputeAll()}, default=None),
    lambda: cllm.PerBlock(None, default=cllm.CacheAll()),
])
def test_bad_settings_of_a_strategy_are_refused_when_it_is_made_or_used(make, new_model):
    model = new_model(oracle.CONFIG)
    assert_refused(lambda: cllm.Executor(model, batch_size=B, seq_len=T, strategy=make()))


@pytest.mark.parametrize("step", [-1, 1.5, "0", None, 2 ** 64, True, math.nan], ids=repr)
def test_bad_step(step, trained):
    _, ex, *_ = trained
    before = ex.step
    assert_refused(setattr, ex, "step", step)
    assert ex.step == before


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True, 2 ** 40], ids=repr)
def test_bad_num_threads_of_the_module(n):
    assert_refused(cllm.set_num_threads, n)


@pytest.mark.parametrize("call", [
    lambda n: cllm.set_num_threads(n),
    lambda n: cllm.accumulate_weight_gradient(np.ones((0, 3)), np.ones((0, 2)), out=np.ones((3, 2)), num_threads=n),
    lambda n: cllm.Executor(cllm.GPT(cllm.ModelConfig(13, 1, 16, 2, 24, 9)), 1, 9, num_threads=n),
], ids=["set_num_threads", "accumulate_weight_gradient", "Executor"])
def test_more_threads_than_any_machine_gives_are_refused(call):
    """OpenMP ends the process, without a word to Python, when the system has no more threads to give."""
    before = cllm.versions()["threads"]
    try:
        assert_refused(call, 2 ** 20)
    finally:
        cllm.set_num_threads(before)


# -------------------------------------------------------------------------------------------------- optimizer, clipping

@pytest.mark.parametrize("arguments", [
    *[dict(lr=value) for value in (-1e-3, math.nan, math.inf, "1e-3", None)],
    *[dict(betas=value) for value in ((0.9,), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan), None, "ab", 0.9, (0.9,) * 3)],
    *[dict(eps=value) for value in (-1e-8, math.nan, None, "1e-8")],
    *[dict(weight_decay=value) for value in (-0.1, math.nan, math.inf, None, "0.1")],
    *[dict(model=value) for value in (None, "small", {})],
], ids=str)
def test_bad_arguments_of_adamw(arguments, new_model):
    given = {"model": new_model(oracle.CONFIG), **arguments}
    assert_refused(cllm.AdamW, given.pop("model"), **given)


@pytest.mark.parametrize("name, value", [("lr", -1.0), ("lr", math.nan), ("lr", None)], ids=repr)
def test_a_rate_that_turns_bad_stops_the_step_before_it_begins(name, value, new_model, copies):
    model, untouched = new_model(oracle.CONFIG), new_model(oracle.CONFIG)
    opt, expected = cllm.AdamW(model), cllm.AdamW(untouched)
    for m in (model, untouched):
        m.gradients["ln_f.bias"][...] = 1
    setattr(opt, name, value)
    assert_refused(opt.step)
    oracle.assert_same_bits(dict(model.parameters), copies(untouched.parameters))
    setattr(opt, name, getattr(expected, name))
    opt.step()
    expected.step()
    oracle.assert_same_bits(dict(model.parameters), dict(untouched.parameters))


@pytest.mark.parametrize("max_norm", [-1.0, math.nan, None, "1"], ids=repr)
def test_bad_max_norm(max_norm, trained, copies):
    model, ex, *_ = trained
    before = state(model, ex, copies)
    assert_refused(cllm.clip_grad_norm, model, max_norm)
    assert_refused(cllm.clip_grad_norm, None, 1.0)
    oracle.assert_same_bits(state(model, ex, copies), before)


def test_an_optimizer_with_more_state_than_was_planned_is_refused(new_model, copies):
    """The contract: "stepping with an optimizer of larger state raises"; total_bytes would be a lie."""
    model = new_model(oracle.CONFIG)
    ex = cllm.Executor(model, batch_size=B, seq_len=T, strategy=cllm.CacheAll(), optimizer="sgd")
    tokens, targets = oracle.draw_batch(oracle.CONFIG, B, T)
    ex.loss_and_grad(tokens, targets)
    before = copies(model.parameters)

    def make_and_step():
        cllm.AdamW(model).step()

    assert_refused(make_and_step, expected=cllm.OptimizerError)
    oracle.assert_same_bits(copies(model.parameters), before)


# --------------------------------------------------------------------------------------------------- NaN and infinity

@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["tok_emb.weight", "blocks.1.ln1.weight", "blocks.0.attn.qkv.weight",
                                  "blocks.1.mlp.fc2.bias", "ln_f.bias"])
@pytest.mark.parametrize("strategy_name", ["CacheAll", "RecomputeAll"])
def test_nan_and_infinity_are_named_and_nothing_is_trained_on_them(strategy_name, name, value, new_model, copies):
    model = new_model(oracle.CONFIG, "float32")
    ex = cllm.Executor(model, batch_size=B, seq_len=T, strategy=getattr(cllm, strategy_name)(), num_threads=2)
    opt = cllm.AdamW(model)
    tokens, targets = oracle.draw_batch(oracle.CONFIG, B, T)
    good_value = model.parameters[name].reshape(-1)[0]
    tokens[0, 0] = 0  # row 0 of the token embedding is looked up
    model.parameters[name].reshape(-1)[0] = value
    before = copies(model.parameters)
    model.zero_grad()
    error = assert_refused(ex.loss_and_grad, tokens, targets, expected=cllm.NonFiniteError)
    block = name.split(".")[1] if name.startswith("blocks") else ""
    assert (f"blocks.{block}" if block else name.split(".")[0]) in str(error), f"the first place is not named: {error}"
    oracle.assert_same_bits(dict(model.parameters), before)
    model.parameters[name].reshape(-1)[0] = good_value
    model.zero_grad()
    assert math.isfinite(ex.loss_and_grad(tokens, targets))
    cllm.clip_grad_norm(model, 1.0)
    opt.step()
    assert all(np.isfinite(p).all() for p in model.parameters.values())


def test_a_loss_that_is_not_finite_is_refused_outside_training_too(new_model):
    model = new_model(oracle.CONFIG)
    ex = cllm.Executor(model, batch_size=B, seq_len=T, strategy=cllm.CacheAll())
    model.parameters["blocks.1.ln2.bias"][3] = math.nan
    error = assert_refused(ex.loss, *oracle.draw_batch(oracle.CONFIG, B, T), expected=cllm.NonFiniteError)
    assert "blocks.1" in str(error)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=repr)
def test_a_loss_that_is_not_finite_where_all_values_are_is_refused(value, new_model, monkeypatch):
    ex = cllm.Executor(new_model(oracle.CONFIG), batch_size=B, seq_len=T, strategy=cllm.CacheAll())
    monkeypatch.setattr(ex._forward, "loss", lambda: value)
    error = assert_refused(ex.loss, *oracle.draw_batch(oracle.CONFIG, B, T), expected=cllm.NonFiniteError)
    assert f"loss, loss: must be finite; got loss {value}" in str(error)


def test_clipping_refuses_a_gradient_that_is_not_finite_and_names_it(new_model, copies):
    model = new_model(oracle.CONFIG)
    model.zero_grad()
    model.gradients["tok_emb.weight"][...] = 2
    model.gradients["ln_f.bias"][3] = math.nan
    before = copies(model.gradients)
    error = assert_refused(cllm.clip_grad_norm, model, 1.0, expected=cllm.NonFiniteError)
    assert "ln_f.bias" in str(error)
    oracle.assert_same_bits(dict(model.gradients), before)


def test_a_gradient_that_is_not_finite_is_named(new_model, copies):
    """The loss is finite; a gradient is not."""
    model = new_model(oracle.CONFIG, "float32")
    ex = cllm.Executor(model, batch_size=B, seq_len=T, strategy=cllm.CacheAll())
    model.gradients["blocks.0.ln2.bias"][4] = math.inf
    before = copies(model.parameters)
    error = assert_refused(ex.loss_and_grad, *oracle.draw_batch(oracle.CONFIG, B, T), expected=cllm.NonFiniteError)
    assert "blocks.0.ln2.bias" in str(error)
    oracle.assert_same_bits(dict(model.parameters), before)


def test_after_a_nan_nothing_is_trained_until_zero_grad(new_model, copies):
    """Gradients are undefined until zero_grad; a step that comes before it leaves parameters as they are."""
    model = new_model(oracle.CONFIG, "float32")
    ex, opt = cllm.Executor(model, batch_size=B, seq_len=T, strategy=cllm.CacheAll()), cllm.AdamW(model)
    tokens, targets = oracle.draw_batch(oracle.CONFIG, B, T)
    good_value = model.parameters["blocks.0.ln2.bias"][1]
    model.parameters["blocks.0.ln2.bias"][1] = math.nan
    assert_refused(ex.loss_and_grad, tokens, targets, expected=cllm.NonFiniteError)
    model.parameters["blocks.0.ln2.bias"][1] = good_value
    before = copies(model.parameters)
    assert_refused(opt.step)
    oracle.assert_same_bits(dict(model.parameters), before)
    model.zero_grad()
    ex.loss_and_grad(tokens, targets)
    opt.step()
    assert all(np.isfinite(p).all() for p in model.parameters.values()), "the optimizer's state was touched"


# ------------------------------------------------------------------------------------------ accumulate_weight_gradient

ROWS, INPUTS, OUTPUTS = 7, 6, 5


def operands(lattice=False, dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = ((ROWS, 6), (ROWS, 6), (2, 3, 3)) if lattice else ((ROWS, INPUTS), (ROWS, OUTPUTS), (INPUTS, OUTPUTS))
    x, dy = (rng.normal(size=shape).astype(dtype) for shape in shapes[:2])
    return x, dy, np.ones(shapes[2], dtype)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("dtype, tol", [("float32", 1e-6), ("float64", 1e-14)])
def test_weight_gradient_is_added(dtype, tol):
    x, dy, dw = operands(dtype=dtype)
    cllm.accumulate_weight_gradient(x, dy, out=dw)
    oracle.assert_near(dw, 1 + x.astype(float).T @ dy.astype(float), tol)
    x, dy, dw = operands(lattice=True, dtype=dtype)
    cllm.accumulate_weight_gradient(x, dy, out=dw, num_threads=2)
    split = [a.astype(float).reshape(ROWS, 2, 3) for a in (dy, x)]
    oracle.assert_near(dw, 1 + np.einsum("nhd,nhi->hdi", *split), tol)
    for lattice in (False, True):  # no rows: nothing is added
        x, dy, dw = operands(lattice)
        cllm.accumulate_weight_gradient(x[:0], dy[:0], out=dw)
        assert (dw == 1).all()


BAD_OPERANDS = {
    "rows differ": lambda x, dy, dw: (x[:-1], dy, dw),
    "x too wide": lambda x, dy, dw: (np.ones((ROWS, 9), x.dtype), dy, dw),
    "dy too wide": lambda x, dy, dw: (x, np.ones((ROWS, 9), x.dtype), dw),
    "out too small": lambda x, dy, dw: (x, dy, dw[:-1].copy()),
    "out one axis": lambda x, dy, dw: (x, dy, dw.reshape(-1)),
    "out four axes": lambda x, dy, dw: (x, dy, dw[None, None] if dw.ndim == 2 else dw[None]),
    "x one axis": lambda x, dy, dw: (x[0], dy, dw),
    "dy three axes": lambda x, dy, dw: (x, dy[None], dw),
    "x double": lambda x, dy, dw: (x.astype(float), dy, dw),
    "out double": lambda x, dy, dw: (x, dy, dw.astype(float)),
    "dy integer": lambda x, dy, dw: (x, dy.astype(int), dw),
    "all half": lambda *a: tuple(b.astype(np.float16) for b in a),
    "all complex": lambda *a: tuple(b.astype(complex) for b in a),
    "other byte order": lambda *a: tuple(b.astype(b.dtype.newbyteorder()) for b in a),
    "x strided": lambda x, dy, dw: (np.repeat(x, 2, 1)[:, ::2], dy, dw),
    "dy in Fortran order": lambda x, dy, dw: (x, np.asfortranarray(dy), dw),
    "out strided": lambda x, dy, dw: (x, dy, np.repeat(dw, 2, -1)[..., ::2]),
    "out read-only": lambda x, dy, dw: (x, dy, read_only(dw)),
    "out None": lambda x, dy, dw: (x, dy, None),
    "x None": lambda x, dy, dw: (None, dy, dw),
    "dy None": lambda x, dy, dw: (x, None, dw),
    "lists": lambda *a: tuple(b.tolist() for b in a),
}


@pytest.mark.parametrize("lattice", [False, True])
@pytest.mark.parametrize("which", BAD_OPERANDS)
def test_bad_operands_of_the_weight_gradient(which, lattice):
    x, dy, dw = BAD_OPERANDS[which](*operands(lattice))
    assert_refused(cllm.accumulate_weight_gradient, x, dy, out=dw)
    if isinstance(dw, np.ndarray):
        assert (dw == 1).all(), "out was written to"


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True], ids=repr)
def test_bad_num_threads_of_the_weight_gradient(n):
    x, dy, dw = operands()
    assert_refused(cllm.accumulate_weight_gradient, x, dy, out=dw, num_threads=n)
    assert (dw == 1).all()


@settings(max_examples=150)
@given(arrays=st.tuples(*3 * [hnp.arrays(st.sampled_from(["f4", "f8", "f4", "i8"]),
                                         hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))]))
def test_any_operands_of_the_weight_gradient_are_used_or_refused(arrays):
    x, dy, dw = arrays
    before = dw.copy()
    fits = x.ndim == dy.ndim == 2 and len(x) == len(dy) and x.dtype == dy.dtype == dw.dtype and dw.dtype.kind == "f"
    full = fits and dw.shape == (x.shape[1], dy.shape[1])
    lattice = (fits and dw.ndim == 3 and dw.shape[1] == dw.shape[2]
               and dw.shape[0] * dw.shape[1] == x.shape[1] == dy.shape[1])
    if full or lattice:
        try:
            cllm.accumulate_weight_gradient(x, dy, out=dw)
        except cllm.ShapeError:
            assert min(dw.shape, default=0) == 0, "only arrays without an element may be refused"
        return
    assert_refused(cllm.accumulate_weight_gradient, x, dy, out=dw)
    oracle.assert_same_bits(dw, before)
