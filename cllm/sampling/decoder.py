"""Logits of the next token, token after token, with what layers remember of earlier ones.

`Decoder` runs the program's own layers on the new rows alone; a layer that looks across positions does so by its own
step-by-step form (`Layer.extend`). Parameters and tables with one row per position are read from the current one on. For
a program with a layer that has no such form there is `Rereader`, which runs the whole forward for every token.
"""

from collections.abc import Mapping

import numpy as np

from cllm import _kernels as kernels
from cllm.arrays import rounded
from cllm.errors import ConfigError, ShapeError, TokenError
from cllm.executor.executor import Executor
from cllm.models.model import Model
from cllm.program.declare import Flow, Param, Table
from cllm.program.dims import NARROW, batch_letters, resolve
from cllm.program.parts import Step
from cllm.program.program import Program
from cllm.schedule.operations import storage
from cllm.threads.counts import checked_threads

SERVED = {"tokens", "key"}  # what a decoder can hand to a layer


def check_samples(model: Model) -> None:
    """Refuse a model whose tokens cannot be drawn one after the other.

    Raises
    ------
    ConfigError
        When it is not causal, or its forward reads other feeds than tokens.
    """
    feeds = {step.feeds[n] for step in model.program.steps for n in step.layer.forward_flow.reads if n in step.feeds}
    causal = model.architecture.causal
    if not causal or feeds != {"tokens"}:
        got = "a family that does not say causal = True" if not causal else f"one that reads {', '.join(sorted(feeds))}"
        raise ConfigError("generate(model)", "must be of a causal family whose forward reads tokens alone", got,
                          "Sample from a language model; a causal family says causal = True.")


def decodes_incrementally(program: Program) -> bool:
    """Whether every layer that looks across positions has a step-by-step form."""
    for step in program.steps:
        layer = step.layer
        own = {declared.name for declared in (*layer.params, *layer.tables)} | set(layer.fed) - set(step.feeds)
        missing = set(layer.forward_flow.reads) - set(step.inputs) - own - SERVED
        if missing or layer.across and not hasattr(layer, "extend"):
            return False
    return True


class Decoder:
    """Reads tokens piece by piece; its state is what layers remember of all of them.

    Parameters
    ----------
    model : Model
    num_threads : int or None
    room : int or None
        Tokens at most; None is as many as the model takes.
    """

    def __init__(self, model: Model, num_threads: int | None = None, room: int | None = None):
        room = room or model.program.longest
        self._model, self._room, self._threads = model, room, checked_threads(num_threads)
        self._states = {step.index: step.layer.start(room, model.dtype) for step in model.program.steps if step.layer.across}
        self.position = 0

    def reset(self) -> None:
        """Forget all tokens."""
        self.position = 0

    def read(self, tokens) -> np.ndarray:
        """Logits after each of some more tokens, an array of shape n V.

        Raises
        ------
        ShapeError, TokenError
            When there are none, more than there is room for with those before, or one is outside the vocabulary.
        """
        tokens = checked_tokens(self._model, tokens, self._room - self.position)
        program = self._model.program
        values: dict[str, np.ndarray] = {}
        with kernels.Threads(self._threads):
            for step in program.steps[:-1]:
                values[step.output] = self._run(step, values, tokens)
            logits = self._run(program.steps[-1], values, tokens)
        self.position += len(tokens)
        return logits

    def _run(self, step: Step, values: Mapping[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
        """The output of one layer for the new rows; the head's is its logits."""
        layer, n = step.layer, len(tokens)
        batch = {**batch_letters(1, n), "R": n}
        letters = step.letters(batch)
        shapes = {name: resolve(shape, batch) for name, shape in step.shapes.items()}
        inputs = {name: values[value].reshape(shapes[name]) for name, value in step.inputs.items()}
        given = {**dict.fromkeys(layer.fed), **inputs, "tokens": tokens[None], "key": None,
                 **{d.name: self._own(step, d, n) for d in (*layer.params, *layer.tables)}}
        if layer.across:
            reads = [name for name in Flow.of(type(layer).extend).reads if name not in ("state", "position")]
            y = layer.extend(self._states[step.index], self.position, *[given[name] for name in reads])
            return rounded(y) if self._model.program.values[step.output].dtype == NARROW else y
        dtype = self._model.dtype
        itemsize = np.dtype(dtype).itemsize
        head = layer.evaluate_flow.exists
        dtypes = {site: storage(self._model.program.values[value].dtype or dtype) for site, value in step.outputs.items()}
        made = {s.name: np.empty(shapes[s.name], dtypes[s.name]) for s in layer.sites if head or not s.optional}
        scratch = {s.name: np.empty(s.elements(layer, letters, self._threads, itemsize), s.dtype or dtype)
                   for s in layer.scratch}
        writes = {name: made.get(name, scratch.get(name)) for name in layer.forward_flow.writes}
        layer.forward(*[given[name] for name in layer.forward_flow.reads], **writes)
        return made[layer.output]

    def _own(self, step: Step, declared: Param | Table, n: int) -> np.ndarray | None:
        """A parameter or table; of one with a row per position, the rows at hand."""
        if declared.name in step.params:
            array = self._model.parameters[step.params[declared.name]]
        elif declared.name in step.tables:
            array = self._model.tables[step.tables[declared.name]]
        else:
            return None
        return array[self.position:self.position + n] if declared.by_position else array


class Rereader:
    """The same as `Decoder` by running the whole forward again for every piece; for any causal program."""

    def __init__(self, model: Model, num_threads: int | None = None, room: int | None = None):
        room = room or model.program.longest
        self._model, self._room = model, room
        # A forward plans nothing for an optimizer, not even for a moment: another thread may train the model.
        self._executor = Executor(model.shared(), 1, room, "recompute", "none", num_threads)
        self._tokens = np.zeros((1, room), np.int32)
        self.position = 0

    def reset(self) -> None:
        """Forget all tokens."""
        self.position = 0

    def read(self, tokens) -> np.ndarray:
        """As `Decoder.read`; later tokens change no earlier logits, so what stands behind does not matter."""
        tokens = checked_tokens(self._model, tokens, self._room - self.position)
        start, stop = self.position, self.position + len(tokens)
        self._tokens[0, start:stop] = tokens
        self._tokens[0, stop:] = 0
        self.position = stop
        return self._executor.logits(self._tokens)[0, start:stop]


def decoder_for(model: Model, num_threads: int | None = None, room: int | None = None) -> Decoder | Rereader:
    """The decoder that serves the model, with room for so many tokens; None is as many as the model takes."""
    check_samples(model)
    return (Decoder if decodes_incrementally(model.program) else Rereader)(model, num_threads, room)


def checked_tokens(model: Model, tokens, room: int) -> np.ndarray:
    """Tokens as an int32 array of shape (n,), n from 1 to `room`."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or not 1 <= tokens.size <= room:
        raise ShapeError("tokens", f"must be 1 to {room} in one axis", f"shape {tokens.shape}",
                         "Pass at least one, and no more than the model's max_seq_len in all.")
    return checked_ids("tokens", model, tokens)


def checked_ids(where: str, model: Model, ids) -> np.ndarray:
    """Ids of the model's vocabulary, at least one, as an int32 array of shape (n,)."""
    ids, vocabulary = np.asarray(ids), model.program.vocabulary
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocabulary:
        span = f" from {ids.min()} to {ids.max()}" if ids.size and ids.dtype.kind in "iuf" else ""
        raise TokenError(where, f"must be integers from 0 to {vocabulary - 1}",
                         f"{ids.dtype} of shape {ids.shape}{span}",
                         "Encode with the tokenizer whose vocabulary the model was trained on.")
    return np.ascontiguousarray(ids, np.int32)
