"""The bugs of the documents, each planted again: what is patched, and which tests must fail for it (law 11).

A story is a plant, a function that takes pytest's monkeypatch, and the tests that are run with it in a pytest session
of their own. ``python tests/bug_stories.py`` writes docs/documents/bug-stories.md; test_bug_stories.py proves the table.
"""
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from cllm import _kernels as kernels
from cllm.executor.executor import Executor
from cllm.layers import Attention, BlockLinear, LayerNorm, Linear
from cllm.models import architecture, model, parameters
from cllm.optim import base
from cllm.optim.adam import Adam
from cllm.program.declare import Param

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "documents" / "bug-stories.md"

FULL = "models/test_golden.py::test_loss_logits_and_every_gradient[gpt2_like-cache-float64]"
LATTICE = "models/test_golden.py::test_loss_logits_and_every_gradient[lattice-cache-float64]"
ADAMW = "models/test_golden.py::test_adamw_run_with_clipping_and_schedule[cache-float64]"
ADDS = "train/test_training.py::test_gradients_add_over_calls"
MOVES = "train/test_training.py::test_a_step_moves_every_parameter_and_only_a_step"
INITIAL = "train/test_training.py::test_initial_weights_have_the_declared_distribution"
NUMERICAL = "documents/test_documents.py::test_numerical_check[usual]"
BATCHES = "documents/test_documents.py::test_accumulation_over_batches[lattice]"
ZEROING = "documents/test_documents.py::test_zeroing_between_batches[usual]"
SHAPES = "documents/test_documents.py::test_shapes[lattice]"
FLOW = "documents/test_documents.py::test_gradient_flows_through_every_layer[lattice]"
CAUSAL = "laws/test_causality.py::test_a_token_reaches_every_later_output"


@dataclass(frozen=True)
class Story:
    """One bug: as the documents tell it, what is patched to have it again, how, and the tests that fail for it."""

    name: str
    patched: str
    plant: Callable[[pytest.MonkeyPatch], None]
    tests: tuple[str, ...]


STORIES: list[Story] = []


def story(name: str, patched: str, *tests: str):
    """Add a planting function to the stories."""
    def add(plant):
        STORIES.append(Story(name, patched, plant, tests))
        return plant
    return add


def wrap(patch, owner, name, before=None, after=None):
    """Call `before` and `after` with the arguments of a function around it; what `after` changes in place stays."""
    original = getattr(owner, name)

    def planted(*args, **kwargs):
        if before:
            before(*args, **kwargs)
        result = original(*args, **kwargs)
        if after:
            after(*args, **kwargs)
        return result

    patch.setattr(owner, name, planted)


@story("`=` for `+=` in a weight gradient", "linear_backward_weight starts from zero", ADDS, BATCHES)
def _(patch):
    def forget(x, dy, *how, dweight, dbias, workspace):
        dweight.fill(0)
    wrap(patch, kernels, "linear_backward_weight", forget)
    wrap(patch, kernels, "block_linear_backward_weight", forget)


@story("`=` for `+=` in the embedding's gradient", "embedding_backward starts from zero", ADDS, FULL)
def _(patch):
    wrap(patch, kernels, "embedding_backward", lambda tokens, dy, time, *, dweight, dpositions: dweight.fill(0))


@story("Buffers of the wrong size: H*D*D for C*C", "the full projection declares H D D weights", FULL, ADAMW)
def _(patch):
    patch.setattr(Linear, "params", (Param("weight", "H D D"), Linear.params[1]))


@story("Buffers of the wrong size: C*C for H*D*D", "the lattice projection declares 3 C C weights", LATTICE, SHAPES)
def _(patch):
    patch.setattr(BlockLinear, "params", (Param("weight", "S C C"), BlockLinear.params[1]))


@story("A gradient buffer of the wrong size", "the gradient of attn.out.weight has 1/H of its rows", FULL, ADDS)
def _(patch):
    def short(arrays):
        made = dict(parameters.zero_gradients(arrays))
        return {n: g[:len(g) // 2].copy() if n.endswith("attn.out.weight") else g for n, g in made.items()}
    patch.setattr(model, "zero_gradients", short)


@story("A gradient buffer missing", "no gradient is made for attn.qkv.weight", FULL, MOVES)
def _(patch):
    def some(arrays):
        return {n: g for n, g in parameters.zero_gradients(arrays).items() if not n.endswith("qkv.weight")}
    patch.setattr(model, "zero_gradients", some)


@story("A weight gradient skipped", "BlockLinear.accumulate does nothing", LATTICE, BATCHES)
def _(patch):
    patch.setattr(BlockLinear, "accumulate", lambda self, dy, x, sequence_rows, *, dweight, dbias, workspace: None)


@story("A missing 1/sqrt(D), forward and backward alike", "q is scaled up by sqrt(D) before attention", FULL, LATTICE)
def _(patch):
    def scaled(heads, *arrays):
        changed = [a.copy() for a in arrays]
        for a in changed:
            width = a.shape[1] // 3
            a[:, :width] *= (width // heads) ** 0.5
        return changed

    forward, backward = kernels.attention_forward, kernels.attention_backward

    def planted_forward(qkv, batch, heads, *terms, **out):
        forward(scaled(heads, qkv)[0], batch, heads, *terms, **out)

    def planted_backward(dy, qkv, y, lse, batch, heads, *rest, dqkv, **out):
        backward(dy, scaled(heads, qkv)[0], y, lse, batch, heads, *rest, dqkv=dqkv, **out)
        dqkv[...] = scaled(heads, dqkv)[0]

    patch.setattr(kernels, "attention_forward", planted_forward)
    patch.setattr(kernels, "attention_backward", planted_backward)


@story("A missing 1/sqrt(D) in the backward alone", "dq and dk are sqrt(D) times too large", FULL, NUMERICAL)
def _(patch):
    def grow(dy, qkv, y, lse, batch, heads, *rest, dqkv, **out):
        dqkv[:, :2 * dy.shape[1]] *= (dy.shape[1] // heads) ** 0.5
    wrap(patch, kernels, "attention_backward", after=grow)


@story("A weight left out of the optimizer", "AdamW does not know attn.qkv.weight", ADAMW, MOVES)
def _(patch):
    matching = base.matching
    patch.setattr(base, "matching", lambda *given: tuple(n for n in matching(*given) if not n.endswith("qkv.weight")))


@story("Only the first 1/H of a weight updated", "AdamW updates the first half of every array", ADAMW, MOVES)
def _(patch):
    update = kernels.adamw_update

    def part(grads, *rest, **lists):
        arrays = [array.reshape(-1) for moved in lists.values() for array in moved.arrays]
        before = [array.copy() for array in arrays]
        update(grads, *rest, **lists)
        for array, old in zip(arrays, before, strict=True):
            array[max(1, len(array) // 2):] = old[max(1, len(array) // 2):]

    patch.setattr(kernels, "adamw_update", part)


@story("Gradients not zeroed between steps", "zero_grad does nothing", ADDS, ZEROING, ADAMW)
def _(patch):
    patch.setattr(model.Model, "zero_grad", lambda self: None)


@story("Gradients zeroed inside backward", "loss_and_grad zeroes them first", ADDS, BATCHES)
def _(patch):
    wrap(patch, Executor, "loss_and_grad", lambda self, *args, **kwargs: self._model.zero_grad())


@story("A wrong sign in the backward", "Linear.backward writes -dx", FULL, NUMERICAL)
def _(patch):
    wrap(patch, Linear, "backward", after=lambda *args, dx, workspace: np.negative(dx, out=dx))


@story("A wrong sign in the update", "AdamW climbs", ADAMW, "documents/test_documents.py::test_loss_falls[usual]")
def _(patch):
    update = Adam._update

    def climb(self, names, grads, params, *rest):
        before = [param.copy() for param in params.arrays]
        update(self, names, grads, params, *rest)
        for param, old in zip(params.arrays, before, strict=True):
            param[...] = 2 * old - param

    patch.setattr(Adam, "_update", climb)


@story("An attention backward that returns zeros", "dqkv is zero", FULL, FLOW, NUMERICAL)
def _(patch):
    wrap(patch, kernels, "attention_backward", after=lambda *args, dqkv, **out: dqkv.fill(0))


@story("An attention backward that returns its input", "dq = dk = dv = dy", FULL, NUMERICAL)
def _(patch):
    def identity(dy, *rest, dqkv, **out):
        dqkv[...] = np.tile(dy, 3)
    wrap(patch, kernels, "attention_backward", after=identity)


@story("An attention forward that returns its input", "y = v", FULL, CAUSAL)
def _(patch):
    def identity(qkv, *rest, y, **out):
        y[...] = qkv[:, 2 * y.shape[1]:]
    wrap(patch, kernels, "attention_forward", after=identity)


@story("A norm's backward that returns its input", "dx = dy", FULL, NUMERICAL)
def _(patch):
    def identity(self, dy, x, mean, rstd, weight, *, dx, dweight, dbias):
        kernels.layernorm_backward(dy, x, mean, rstd, weight, dx=dx.copy(), dweight=dweight, dbias=dbias)
        dx += dy
    patch.setattr(LayerNorm, "backward", identity)


@story("`[i]` for `[i, j]` in a weight gradient", "every column of dW is its first", FULL, NUMERICAL)
def _(patch):
    def column(self, dy, x, sequence_rows, *, dweight, dbias, workspace):
        dweight += (x.T @ dy)[:, :1]
        if dbias is not None:
            dbias += dy.sum(0)
    patch.setattr(Linear, "accumulate", column)


@story("`[i]` for `[i, j]` in the softmax's backward", "ds = p (1 - p) dp, the Jacobian's diagonal", FULL, NUMERICAL)
def _(patch):
    def diagonal(self, dy, qkv, y, lse, probs, *, dqkv, workspace):
        (N, width), batch, (H, D) = dy.shape, lse.shape[0], (self.H, self.D)
        q, k, v = qkv.reshape(batch, N // batch, 3, H, D).transpose(2, 0, 3, 1, 4)
        g = dy.reshape(batch, N // batch, H, D).transpose(0, 2, 1, 3)
        p = np.tril(np.exp(q @ k.swapaxes(-1, -2) / D ** 0.5 - lse[..., None]))
        ds = p * (1 - p) * (g @ v.swapaxes(-1, -2)) / D ** 0.5
        d = np.stack([ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g])
        dqkv[...] = d.transpose(1, 3, 0, 2, 4).reshape(N, 3 * width)
    patch.setattr(Attention, "backward", diagonal)


@story("A reported loss that is not the differentiated one", "losses are reported at half", FULL, NUMERICAL)
def _(patch):
    add = kernels.accumulate_losses
    patch.setattr(kernels, "accumulate_losses", lambda losses, *, loss: add(losses * 0.5, loss=loss))


@story("A rate overwritten each step", "AdamW.step sets lr to its default", ADAMW,
       "train/test_training.py::test_adamw_equals_the_oracle_and_decays_matrices_only")
def _(patch):
    def overwrite(self):
        self.lr = 3e-4
    wrap(patch, Adam, "step", overwrite)


@story("Zero initialisation", "weights start at zero", INITIAL, "documents/test_documents.py::test_a_b_c_gives_b_c_d[usual]")
def _(patch):
    patch.setitem(parameters.DRAWN, "normal", lambda generator, parameter, count: np.zeros(count))


class _Outcomes:
    """Names of the tests that passed and that failed, in a session inside this one."""

    def __init__(self):
        self.passed, self.failed = set(), set()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            (self.failed if report.failed else self.passed).add("/".join(report.nodeid.rsplit("/", 2)[-2:]))


def run(tests) -> _Outcomes:
    """Run tests by the ends of their ids, in this process."""
    outcomes = _Outcomes()
    ids = [str(TESTS / test) for test in tests]
    with redirect_stdout(StringIO()) as said, redirect_stderr(said):
        pytest.main([*ids, "-q", "--tb=no", "--capture=no", "-p", "no:cacheprovider", "-p", "no:unraisableexception"],
                    plugins=[outcomes])
    assert outcomes.passed | outcomes.failed, said.getvalue()
    return outcomes


def prove(told: Story) -> _Outcomes:
    """Plant a story and run its tests."""
    with pytest.MonkeyPatch.context() as patch:
        architecture._wired.cache_clear()
        told.plant(patch)
        try:
            return run(told.tests)
        finally:
            architecture._wired.cache_clear()


def page() -> str:
    """The table as a page."""
    lines = ["# Bug stories", "",
             "Each bug that the documents tell of is planted again by a small patch, and the tests beside it fail.",
             "`tests/documents/test_bug_stories.py` proves every row; this page is written by `python tests/bug_stories.py`.",
             "",
             "| bug | planted as | tests that fail |", "|---|---|---|"]
    for told in STORIES:
        lines.append(f"| {told.name} | {told.patched} | {', '.join(f'`{t}`' for t in told.tests)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
