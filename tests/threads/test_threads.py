"""Several Python threads at once: each call runs on its own number of threads, and gives the bits that it gives alone."""
import copy
import hashlib
import pickle
import re
import threading
from pathlib import Path

import numpy as np
import oracle
import pytest

import cllm
from cllm import _kernels as kernels

# Wide enough that a product of 64 rows is worth two threads and more.
CONFIG = {**oracle.CONFIG, "n_layers": 2, "d_model": 64, "d_ff": 256, "n_heads": 4, "max_seq_len": 32, "dropout": 0.1}
B, T = 2, 32
COUNTS = (1, 2, 3, 8)


def batch(seed=0):
    return oracle.draw_batch(CONFIG, B, T, seed=seed)


def new(num_threads=2, seed=0, **changes):
    model = cllm.GPT(cllm.ModelConfig(**{**CONFIG, **changes}), seed=seed)
    return model, cllm.Executor(model, B, T, num_threads=num_threads, seed=seed)


def together(*works):
    """Run functions in Python threads of their own, begun at once; their results. The first error is raised."""
    results, errors, start = [None] * len(works), [], threading.Barrier(len(works))

    def run(i, work):
        start.wait()
        try:
            results[i] = work()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(i, work), daemon=True) for i, work in enumerate(works)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


def digest(arrays, *numbers):
    found = hashlib.sha256(np.array(numbers).tobytes())
    for name in sorted(arrays):
        found.update(arrays[name].tobytes())
    return found.hexdigest()


def trained(num_threads, seed, steps):
    """A digest of all that a training run gives, with evaluation and sampling between its steps."""
    model, ex = new(num_threads, seed)
    optimizer, seen = cllm.AdamW(model, lr=1e-3), []
    for step in range(steps):
        model.zero_grad()
        seen.append(ex.loss_and_grad(*batch(step)))
        seen.append(cllm.clip_grad_norm(model, 0.5))
        optimizer.step()
        if step % 10 == 0:
            seen.append(ex.loss(*batch(99)))
            seen.extend(cllm.generate(model, [1, 2], 3, num_threads=num_threads))
            seen.append(float(ex.logits(batch(98)[0]).sum()))
    return digest(model.parameters, *seen)


def test_hundreds_of_steps_of_many_threads_have_the_bits_of_each_alone(pytestconfig):
    steps = 125 if pytestconfig.getoption("whole") else 30
    expected = [trained(1, seed, steps) for seed in range(2)]
    found = together(*[lambda n=n, seed=seed: trained(n, seed, steps) for seed in range(2) for n in COUNTS])
    assert found == [alone for alone in expected for _ in COUNTS]


def test_one_executor_may_be_shared():
    model, ex = new(2, dropout=0.0)
    batches = [batch(seed) for seed in range(6)]
    losses, logits = [ex.loss(*b) for b in batches], [ex.logits(b[0]) for b in batches]

    def ask(k):
        for _ in range(20):
            assert ex.loss(*batches[k]) == losses[k]
            assert (ex.logits(batches[k][0]) == logits[k]).all()

    together(*[lambda k=k: ask(k) for k in range(6)])
    # The same batch over and over: whoever adds, the sum is that of as many steps in turn.
    for _ in range(12):
        loss = ex.loss_and_grad(*batches[0])
    expected = digest(model.gradients)
    model.zero_grad()
    assert set(together(*[lambda: [ex.loss_and_grad(*batches[0]) for _ in range(4)][-1]] * 3)) == {loss}
    assert digest(model.gradients) == expected


def test_executors_of_one_model_side_by_side(copies):
    model, first = new(1, dropout=0.0)
    others = [cllm.Executor(model, B, T, strategy=s, num_threads=n) for s, n in (("recompute", 2), ("selective", 3))]
    batches = [batch(seed) for seed in range(3)]
    losses = [first.loss(*b) for b in batches]
    for _ in range(9):
        first.loss_and_grad(*batches[0])
    expected = digest(model.gradients)
    model.zero_grad()

    def work(k, ex):
        for _ in range(3):
            assert ex.loss(*batches[k]) == losses[k]
            assert ex.loss_and_grad(*batches[0]) == losses[0]

    together(*[lambda k=k, ex=ex: work(k, ex) for k, ex in enumerate((first, *others))])
    assert digest(model.gradients) == expected


def test_first_gradients_of_two_threads_are_one_set():
    for _ in range(20):
        model, _ = new(1)
        made = together(*[lambda model=model: model.gradients] * 4)
        assert all(gradients is made[0] for gradients in made)


def test_a_text_may_be_sampled_while_the_model_is_trained():
    model, ex = new(2)
    optimizer, stop = cllm.AdamW(model, lr=1e-3), threading.Event()

    def train():
        try:
            for step in range(60):
                model.zero_grad()
                ex.loss_and_grad(*batch(step))
                optimizer.step()
        finally:
            stop.set()

    def sample(n):
        texts = 0
        while not stop.is_set() or not texts:
            text = cllm.generate(model, [1], 10, seed=texts, num_threads=n)
            assert text.min() >= 0 and text.max() < CONFIG["vocab_size"]
            texts += 1

    def evaluate():
        other = cllm.Executor(model, B, T, strategy="recompute", num_threads=3)
        while not stop.is_set():
            assert np.isfinite(other.loss(*batch()))

    together(train, lambda: sample(1), lambda: sample(3), evaluate)


# The number of threads and its scope

def test_the_number_belongs_to_the_thread_that_sets_it():
    def other():
        seen = kernels.get_threads()
        kernels.set_threads(3)
        with kernels.Threads(5):
            return seen, kernels.get_threads()

    before = kernels.get_threads()
    with kernels.Threads(2):
        assert together(other) == [(1, 5)] and kernels.get_threads() == 2
    assert kernels.get_threads() == before


def test_scopes_lie_in_each_other_and_end_with_an_error():
    before = kernels.get_threads()
    with pytest.raises(ZeroDivisionError), kernels.Threads(2):
        with kernels.Threads(3):
            assert kernels.get_threads() == 3
        assert kernels.get_threads() == 2
        kernels.set_threads(7)  # for later, not for this scope
        assert kernels.get_threads() == 2
        1 / 0  # noqa: B018
    assert kernels.get_threads() == 7
    kernels.set_threads(before)


def with_call(ex, call):
    """Let the executor make a call in the middle of its steps, as a layer written in Python may."""
    calls = ex._bound(B)
    ex._calls["train", B] = [*calls[:5], call, *calls[5:]]


def test_a_layer_may_use_another_executor_with_another_number():
    _, ex = new(2)
    expected = ex.loss_and_grad(*batch())
    _, inner = new(3, seed=1)
    value, seen = inner.loss(*batch(1)), []

    def call():
        cllm.set_num_threads(8)  # for what is called later without a number, not for this step
        seen.append(inner.loss(*batch(1)))
        seen.append(kernels.get_threads())

    try:
        ex.step = 0
        with_call(ex, call)
        assert ex.loss_and_grad(*batch()) == expected and seen == [value, 2]
    finally:
        cllm.set_num_threads(None)


@pytest.mark.parametrize("what", ["loss", "logits", "loss_and_grad", "zero_grad", "clip", "other executor"])
def test_a_layer_may_not_use_its_own_executor_or_change_its_model(what):
    """It would wait for itself for ever."""
    model, ex = new(2)
    other = cllm.Executor(model, B, T)
    with_call(ex, {"loss": lambda: ex.loss(*batch()), "logits": lambda: ex.logits(batch()[0]),
                   "loss_and_grad": lambda: ex.loss_and_grad(*batch()), "zero_grad": model.zero_grad,
                   "clip": lambda: cllm.clip_grad_norm(model, 1.0),
                   "other executor": lambda: other.loss_and_grad(*batch())}[what])
    with pytest.raises(cllm.CllmError, match="must not be used from within a step of its own"):
        ex.loss_and_grad(*batch())
    before = kernels.get_threads()
    del ex._calls["train", B]
    model.zero_grad()
    assert np.isfinite(ex.loss_and_grad(*batch())) and kernels.get_threads() == before


def test_an_error_lets_the_next_thread_in():
    _, ex = new(2)
    with pytest.raises(cllm.TokenError):
        ex.loss_and_grad(batch()[0] + 10 ** 6, batch()[1])
    assert together(lambda: np.isfinite(ex.loss_and_grad(*batch()))) == [True]


def test_a_turn_is_free_in_a_copy():
    model, _ = new(1)
    with model.turn():
        for copied in (copy.deepcopy(model.turn), pickle.loads(pickle.dumps(model.turn))):
            with copied():
                pass


def test_steps_after_a_step_run_on_its_threads(monkeypatch):
    """Zeroing, clipping and updates have no number of their own."""
    seen = []
    model, ex = new(3)
    optimizer = cllm.AdamW(model)
    for name in ("fill_zero", "scale_in_place", "sum_of_squares", "adamw_update", "nonfinite_arrays"):
        call = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, call=call, **k: (seen.append(kernels.get_threads()), call(*a, **k))[1])
    ex.loss_and_grad(*batch())
    cllm.clip_grad_norm(model, 1e-3)
    cllm.clip_each_grad_norm(model, 1e-3)
    optimizer.step()
    model.zero_grad()
    assert len(seen) == 9 and set(seen) == {3}


def test_every_kernel_lets_other_python_threads_run():
    """A kernel that holds the interpreter's lock stops sampling, evaluation and progress in other threads."""
    sources = sorted((Path(cllm.__file__).parent / "kernels").glob("*.pxi"))
    holding = {found[1] for source in sources
               for found in re.finditer(r"^def (\w+)\(.*?(?=^\S|\Z)", source.read_text(), re.S | re.M)
               if "with nogil:" not in found[0] and "prange" not in found[0]}
    quick = {"bfloat16_instruction", "take_bfloat16", "bfloat16_pairs_agree", "bfloat16_tiles_agree", "dynamic_codes",
             "attention_workspace", "block_linear_workspace", "linear_workspace",
             "vector_bytes", "int8_bytes", "exponential", "accumulate_losses", "philox4x32", "set_threads",
             "get_threads", "before_fork", "stay_serial", "call_timed", "call_each", "take_level2", "block_bytes"}
    assert holding == quick
