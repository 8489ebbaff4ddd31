"""`FineTuningData`: files of examples as batches, for `Trainer(data=..., eval_data=...)`."""

import hashlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cllm.checks import LARGEST_SEED, checked_flag, checked_size, checked_word
from cllm.errors import ConfigError, DataError
from cllm.finetuning import packing as rows
from cllm.finetuning.encoding import Encoded, Encoder
from cllm.finetuning.examples import read_examples, refused
from cllm.finetuning.shown import shown_example
from cllm.pretrained.speech import Speech

SMALLEST_BUCKET = 32  # padded lengths are multiples of this, or of an eighth of seq_len: each asks for an executor of its own


class FineTuningData:
    """Batches of examples, by number: a function of the number of a step, of files and of a seed, and of nothing else.

    A file has an object of JSON a line: ``{"text"}``, ``{"prompt", "completion"}``, ``{"instruction", "output"}`` with or
    without an ``"input"``, or ``{"messages": [{"role", "content"}, ...]}``. Texts and completions are trained on with the token
    that ends a text; of messages, the assistant's with what ends their turn.

    Parameters
    ----------
    files : path or sequence of paths
    speech : Speech, tokenizer, or path of a model
        What makes tokens of text, and its template of chats. ``Speech.beside(directory)`` is that of a model.
    batch_size, seq_len : int
        B, and the longest T: examples with more inputs lose what is beyond.
    packing : bool
        Rows of T hold as many examples as fit, each with `positions` of its own and none seeing another; else a row is one
        example, a batch holds examples of about the same length, and is as long as the longest, rounded up.
    turns : {"all", "last"}
        Answers of a chat that are trained on.
    seed : int
        Of the order, another in each epoch.
    evaluation : bool
        Every number is a batch of one pass, in one order: for `eval_data`. What the last lacks are rows without targets.

    Attributes
    ----------
    examples : list of Encoded
        Those with a target, in the order of the files.
    notes : list of str
        What a user should know: what was cut, what was left out.
    speech : Speech
    sha256 : str
        Of the examples' tokens and targets, and of all that decides their order.
    tokens, targets : int
        Inputs and targets of one epoch.

    Raises
    ------
    ConfigError, DataError
        When an argument is outside what it may be, a file cannot be read, a line is no example, or nothing is left to train on.
    """

    unit: ClassVar[str] = "nats per target"

    def __init__(self, files: str | PathLike | Sequence[str | PathLike], speech: Any, batch_size: int, seq_len: int,
                 packing: bool = True, turns: str = "all", seed: int = 0, evaluation: bool = False):
        where = "FineTuningData"
        self.batch_size = checked_size(f"{where}(batch_size=...)", batch_size)
        self.seq_len = checked_size(f"{where}(seq_len=...)", seq_len)
        self.seed = checked_size(f"{where}(seed=...)", seed, 0, LARGEST_SEED)
        self.packing = checked_flag(f"{where}(packing=...)", packing)
        self.evaluation = checked_flag(f"{where}(evaluation=...)", evaluation)
        turns = checked_word(f"{where}(turns=...)", turns, ("all", "last"))
        self.speech, self.notes, self.turns = _speech(speech), [], turns
        encoder = Encoder(self.speech, turns)
        self.paths = [Path(f) for f in ([files] if isinstance(files, (str, PathLike)) else files)]
        whole = [one for path in self.paths for one in self._encoded(path, encoder)]
        self.examples = self._fitting(whole)
        self.tokens, self.targets = (sum(counts) for counts in ([len(one.tokens) for one in self.examples],
                                                                [one.count for one in self.examples]))
        lengths, order = np.array([len(e.tokens) for e in self.examples]), rows.shuffled(len(self.examples), self.seed, 0)
        # rows of some examples each, B of which are a batch; or batches of one example a row
        self._units = (rows.best_fit_decreasing(lengths, self.seq_len, order) if self.packing
                       else rows.alike(lengths, self.batch_size, order))
        self.sha256 = self._digest()

    def __len__(self) -> int:
        """Batches of one pass over all examples."""
        return -(-len(self._units) // self.batch_size) if self.packing else len(self._units)

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """Batch `number`, counted from 0 and over all epochs: tokens, targets, and positions where rows are packed.

        int32 arrays of shape B T; what is padding has the target -1.
        """
        number = checked_size("FineTuningData(number)", number, 0, 2**62)
        size = self.batch_size if self.packing else 1
        taken = [self._unit(unit) for unit in range(number * size, (number + 1) * size)]
        if self.evaluation:
            first = number % len(self) * size
            order = rows.shuffled(len(self._units), self.seed, 0)
            taken = [self._units[unit] for unit in order[first:first + size]]
        if self.packing:
            return self._arrays(taken, self.seq_len)
        longest = max(len(self.examples[example].tokens) for example in taken[0])
        step = max(SMALLEST_BUCKET, -(-self.seq_len // 8))
        arrays = self._arrays([[example] for example in taken[0]], min(self.seq_len, -(-longest // step) * step))
        del arrays["positions"]
        return arrays

    @property
    def largest(self) -> tuple[int, str]:
        """The largest id in an example, and where the first with it stands."""
        found = ((int(max(one.tokens.max(), one.targets.max())), one.where) for one in self.examples)
        return max(found, key=lambda pair: pair[0])

    @property
    def prompt(self) -> np.ndarray:
        """Ids of the first example up to what is trained on: what samples of a run continue."""
        first = self.examples[0]
        return first.tokens[:int(np.flatnonzero(first.targets != -1)[0]) + 1]

    @property
    def tokenizer(self) -> Any:
        """That of `speech`."""
        return self.speech.tokenizer

    @property
    def used(self) -> float:
        """Share of the positions of an epoch that hold an input."""
        if self.packing:
            return self.tokens / (len(self._units) * self.seq_len)
        return self.tokens / sum(self(number)["tokens"].size for number in range(len(self)))

    def show(self, count: int = 3) -> str:
        """The first examples for people to read: each token, and whether it is trained on."""
        count = checked_size("FineTuningData.show(count)", count)
        return "\n\n".join(shown_example(number, one, self.tokenizer) for number, one in enumerate(self.examples[:count], 1))

    def describe(self) -> dict:
        """What a snapshot keeps, to make the same again."""
        where = self.speech.where
        where = str(Path(where).absolute()) if Path(where).exists() else where
        return {"files": [str(path.absolute()) for path in self.paths], "speech": where,
                "batch_size": self.batch_size, "seq_len": self.seq_len, "packing": self.packing, "turns": self.turns,
                "seed": self.seed}

    def in_words(self) -> str:
        """How much there is, and how it lies in rows."""
        how = f"{len(self._units):,} rows of {self.seq_len}" if self.packing else f"{len(self):,} padded batches"
        return (f"{len(self.examples):,} examples of {self.tokens:,} tokens, {self.targets:,} of them trained on, in {how}, "
                f"{100 * self.used:.1f} % used; {len(self):,} batches an epoch")

    def _unit(self, number: int) -> list[int]:
        """Row, or batch, `number` of the run: epoch after epoch, each in its own order."""
        epoch, place = divmod(number, len(self._units))
        return self._units[rows.shuffled(len(self._units), self.seed, epoch)[place]]

    def _arrays(self, taken: Sequence[Sequence[int]], time: int) -> dict[str, np.ndarray]:
        shape = self.batch_size, time
        tokens, targets, positions = np.zeros(shape, np.int32), np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
        for row, examples in enumerate(taken):
            start = 0
            for example in map(self.examples.__getitem__, examples):
                place = slice(start, start := start + len(example.tokens))
                tokens[row, place], targets[row, place] = example.tokens, example.targets
                positions[row, place] = np.arange(len(example.tokens))
        return {"tokens": tokens, "targets": targets, "positions": positions}

    def _encoded(self, path: Path, encoder: Encoder) -> list[Encoded]:
        found, wrong = [], []
        for example in read_examples(path, chats=self.speech.form is not None):
            try:
                found.append(encoder(example))
            except (ValueError, DataError) as error:
                if isinstance(error, ConfigError):
                    raise
                reason = f"{error.got}, where it {error.must}" if isinstance(error, DataError) else str(error)
                wrong.append((int(example.where.rpartition(" ")[2]), reason))
        if wrong:
            raise refused(str(path), wrong)
        return found

    def _fitting(self, whole: list[Encoded]) -> list[Encoded]:
        """The examples as they fit into T and have something to train on; what was lost is noted."""
        cut = [one.cut(self.seq_len) for one in whole]
        kept = [one for one in cut if one.count]
        longer = [(one, short) for one, short in zip(whole, cut, strict=True) if len(short.tokens) < len(one.tokens)]
        if longer:
            lost = sum(one.count - short.count for one, short in longer)
            beyond = sum(len(one.tokens) - self.seq_len for one, _ in longer)
            self.notes.append(f"{len(longer):,} of {len(whole):,} examples are longer than seq_len = {self.seq_len} and are "
                              f"cut: {beyond:,} tokens, {lost:,} of them trained on, are left out (the first: "
                              f"{longer[0][0].where})")
        if len(kept) < len(whole):
            first = next(one.where for one in cut if not one.count)
            self.notes.append(f"{len(whole) - len(kept):,} of {len(whole):,} examples have nothing to train on and are left "
                              f"out (the first: {first})")
        if self.speech.end is None:
            self.notes.append("the tokenizer has no token that ends a text: none is put after texts and completions")
        if not kept:
            where = ", ".join(map(str, self.paths)) or "FineTuningData(files)"
            raise DataError(where, "must have an example with a target", "none", "Take a larger seq_len, or other examples.")
        return kept

    def _digest(self) -> str:
        settings = self.batch_size, self.seq_len, self.packing, self.turns, self.seed, self.evaluation
        digest = hashlib.sha256(repr(settings).encode())
        for one in self.examples:
            digest.update(f"{len(one.tokens)} ".encode())
            digest.update(one.tokens.tobytes() + one.targets.tobytes())
        return digest.hexdigest()


def _speech(given) -> Speech:
    if isinstance(given, Speech):
        return given
    if isinstance(given, (str, PathLike)):
        return Speech.beside(given)
    if not callable(getattr(given, "encode", None)):
        raise ConfigError("FineTuningData(speech)", "must be a Speech, a tokenizer, or the path of a model",
                          type(given).__name__, "Pass for example the directory that from_pretrained was given.")
    return Speech("the tokenizer", given)
