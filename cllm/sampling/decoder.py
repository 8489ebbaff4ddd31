"""Logits of the next token, token after token, with the keys and values of earlier ones kept.

`Decoder` runs the program's own layers on the new rows alone. A layer that looks at earlier tokens needs an incremental
form in `INCREMENTAL`; parameters and tables with one row per position are read from the current one on. For a program
with a layer that has no such form there is `Rereader`, which runs the whole forward for every token.
"""

from collections.abc import Callable, Mapping

import numpy as np

from cllm import _kernels as kernels
from cllm.errors import ShapeError, TokenError
from cllm.executor.executor import Executor
from cllm.layers import Attention
from cllm.models.gpt import GPT
from cllm.program.declare import Param, Table
from cllm.program.dims import batch_letters, resolve
from cllm.program.program import Program, Step
from cllm.program.workload import all_cores

FEEDS_SERVED = {"tokens", "key"}


class CachedAttention:
    """Attention of new rows over all rows so far: keys and values stay, arrays of shape H P D."""

    def __init__(self, layer: Attention, room: int, dtype: str):
        self.layer = layer
        self.keys = np.empty((layer.H, room, layer.D), dtype)
        self.values = np.empty((layer.H, room, layer.D), dtype)

    def __call__(self, start: int, run: Callable[[], Mapping[str, np.ndarray]], qkv: np.ndarray) -> np.ndarray:
        """Attended values of the rows of `qkv`, an array of shape n 3C, at positions `start` and on.

        `run` is the layer's own forward, which serves for the first rows.
        """
        n, layer = len(qkv), self.layer
        q, k, v = qkv.reshape(n, 3, layer.H, layer.D).transpose(1, 2, 0, 3)
        self.keys[:, start:start + n], self.values[:, start:start + n] = k, v
        if start == 0:
            return run()["y"]
        scores = q @ self.keys[:, :start + n].transpose(0, 2, 1) / np.sqrt(layer.D).astype(qkv.dtype)
        if n > 1:
            scores[:, np.arange(n)[:, None] + start < np.arange(start + n)] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights /= weights.sum(axis=-1, keepdims=True)
        y = weights @ self.values[:, :start + n]
        return np.ascontiguousarray(y.transpose(1, 0, 2).reshape(n, layer.C))


INCREMENTAL = {Attention: CachedAttention}


def decodes_incrementally(program: Program) -> bool:
    """Whether every layer that looks across positions has an incremental form."""
    for step in program.steps:
        layer = step.layer
        across = any("T" in site.shape.split() for site in layer.sites)
        own = {declared.name for declared in (*layer.params, *layer.tables)}
        missing = set(layer.forward_flow.reads) - set(step.inputs) - own - FEEDS_SERVED
        if (across and type(layer) not in INCREMENTAL) or missing:
            return False
    return True


class Decoder:
    """Reads tokens piece by piece; its state is the keys and values of all of them.

    Parameters
    ----------
    model : GPT
    num_threads : int or None
    """

    def __init__(self, model: GPT, num_threads: int | None = None):
        self._model, self._threads = model, num_threads or all_cores()
        room = model.config.max_seq_len
        self._caches = {step.index: INCREMENTAL[type(step.layer)](step.layer, room, model.dtype)
                        for step in model.program.steps if type(step.layer) in INCREMENTAL}
        self.position = 0

    def reset(self) -> None:
        """Forget all tokens."""
        self.position = 0

    def read(self, tokens) -> np.ndarray:
        """Logits after each of some more tokens, an array of shape n V.

        Raises
        ------
        ShapeError, TokenError
            When there are none, more than ``max_seq_len`` with those before, or one is outside the vocabulary.
        """
        tokens = checked_tokens(self._model, tokens, self.position)
        kernels.set_threads(self._threads)
        program = self._model.program
        values: dict[str, np.ndarray] = {}
        for step in program.steps[:-1]:
            values[step.output] = self._run(step, values, tokens)
        logits = self._run(program.steps[-1], values, tokens)
        self.position += len(tokens)
        return logits

    def _run(self, step: Step, values: Mapping[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
        """The output of one layer for the new rows; the head's is its logits."""
        layer, n = step.layer, len(tokens)
        letters = {**self._model.config.letters, **batch_letters(1, n), "R": n, **layer.letters}
        inputs = {name: values[value] for name, value in step.inputs.items()}

        def run() -> Mapping[str, np.ndarray]:
            given = {**inputs, "tokens": tokens[None], "key": None,
                     **{d.name: self._own(step, d, n) for d in (*layer.params, *layer.tables)}}
            dtype = self._model.dtype
            head = layer.evaluate_flow.exists
            itemsize = np.dtype(dtype).itemsize
            made = {s.name: np.empty(resolve(s.shape, letters), s.dtype or dtype)
                    for s in layer.sites if head or not s.optional}
            scratch = {s.name: np.empty(s.elements(layer, letters, self._threads, itemsize), s.dtype or dtype)
                       for s in layer.scratch}
            writes = {name: made.get(name, scratch.get(name)) for name in layer.forward_flow.writes}
            layer.forward(*[given[name] for name in layer.forward_flow.reads], **writes)
            return made

        if step.index in self._caches:
            return self._caches[step.index](self.position, run, **inputs)
        return run()[layer.output]

    def _own(self, step: Step, declared: Param | Table, n: int) -> np.ndarray | None:
        """A parameter or table; of one with a row per position, the rows at hand."""
        if declared.name in step.params:
            array = self._model.parameters[step.params[declared.name]]
        elif declared.name in step.tables:
            array = self._model.tables[step.tables[declared.name]]
        else:
            return None
        return array[self.position:self.position + n] if declared.shape.split()[0] == "P" else array


class Rereader:
    """The same as `Decoder` by running the whole forward again for every piece; for any program."""

    def __init__(self, model: GPT, num_threads: int | None = None):
        planned = model.planned_optimizer
        self._model = model
        self._executor = Executor(model, 1, model.config.max_seq_len, "recompute", "none", num_threads)
        model.attach(planned)  # a forward plans nothing for an optimizer
        self._tokens = np.zeros((1, model.config.max_seq_len), np.int32)
        self.position = 0

    def reset(self) -> None:
        """Forget all tokens."""
        self.position = 0

    def read(self, tokens) -> np.ndarray:
        """As `Decoder.read`; later tokens change no earlier logits, so what stands behind does not matter."""
        tokens = checked_tokens(self._model, tokens, self.position)
        start, stop = self.position, self.position + len(tokens)
        self._tokens[0, start:stop] = tokens
        self._tokens[0, stop:] = 0
        self.position = stop
        return self._executor.logits(self._tokens)[0, start:stop]


def decoder_for(model: GPT, num_threads: int | None = None) -> Decoder | Rereader:
    """The decoder that serves the model."""
    return (Decoder if decodes_incrementally(model.program) else Rereader)(model, num_threads)


def checked_tokens(model: GPT, tokens, position: int) -> np.ndarray:
    """Tokens as an int32 array of shape (n,), with room for them behind `position`."""
    tokens = np.asarray(tokens)
    room = model.config.max_seq_len - position
    if tokens.ndim != 1 or not 1 <= tokens.size <= room:
        raise ShapeError("tokens", f"must be 1 to {room} in one axis", f"shape {tokens.shape}",
                         "Pass at least one, and no more than the model's max_seq_len in all.")
    return checked_ids("tokens", model, tokens)


def checked_ids(where: str, model: GPT, ids) -> np.ndarray:
    """Ids of the model's vocabulary, at least one, as an int32 array of shape (n,)."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= model.config.vocab_size:
        span = f" from {ids.min()} to {ids.max()}" if ids.size and ids.dtype.kind in "iuf" else ""
        raise TokenError(where, f"must be integers from 0 to {model.config.vocab_size - 1}",
                         f"{ids.dtype} of shape {ids.shape}{span}",
                         "Encode with the tokenizer whose vocabulary the model was trained on.")
    return np.ascontiguousarray(ids, np.int32)
