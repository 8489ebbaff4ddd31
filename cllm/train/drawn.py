"""What a run is fed by a function of the step, for any model, in place of windows of a text."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from cllm.errors import CllmError, ConfigError, DataError
from cllm.executor.batches import FeedCheck, checked_feeds, divisor_of, feed_checks
from cllm.models.model import Model
from cllm.program.packed import fed_by
from cllm.program.workload import Workload
from cllm.train.data import tokenizer_files
from cllm.train.executors import Executors, Shape, shape_of
from cllm.train.step import Call

# Settings that a text alone has: sizes and prompts come from what the function knows, and there is nothing to split.
OF_TEXT = ("batch_size", "seq_len", "accumulate", "val_fraction", "sample_prompt")


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Every feed by name, as functions of a number return them: of the step, and of a batch of an evaluation.

    A run that is resumed goes on by the number of the step alone. So a function has to return the same for the same number,
    and is asked for batch 0 twice when the run begins: what it returned then is known by its digest from there on.

    Functions may know more, in attributes: of `data`, ``tokenizer``, ``speech`` (whose ``stops`` end samples), ``sha256``,
    ``unit`` of losses; of both, ``prompt`` (ids that samples continue), ``largest`` (the largest id, and where), ``notes`` for
    the user, ``in_words()``, and ``describe()``, plain data for snapshots. `cllm.FineTuningData` has all of these.

    Parameters
    ----------
    model : Model
    data : callable
        ``data(step)`` returns a dict of arrays; its sizes may differ from step to step.
    eval_data : callable or None
        ``eval_data(number)`` of the batches of an evaluation, counted from 0; one with a length has no more than those.

    Attributes
    ----------
    sizes : (B, T), or (B, T, True) for packed rows
        Of batch 0.
    sha256 : str
        Of batch 0, as the model is fed it, and of what `data` says of itself by a `sha256` of its own.

    Raises
    ------
    ConfigError, DataError, ShapeError, DtypeError, TokenError
        When they are no functions, or batch 0 cannot be fed, or is another when asked for again.
    """

    model: Model
    data: Callable[[int], Mapping]
    eval_data: Callable[[int], Mapping] | None = None
    sizes: Shape = field(init=False)
    sha256: str = field(init=False)

    bytes_per_token: ClassVar[None] = None  # nobody knows
    tokens_of_step: ClassVar[None] = None
    by_heart: ClassVar[str] = "its batches by heart (stop_when_worse ends such a run)"

    def __post_init__(self):
        for name in ("data", "eval_data"):
            function = getattr(self, name)
            if not callable(function) and not (name == "eval_data" and function is None):
                raise ConfigError(f"Trainer({name}=...)", "must be a function of a number that returns every feed by name",
                                  type(function).__name__, f"Pass for example {name}=lambda number: {{'image': ..., ...}}.")
            self._check_ids(name, function)
        sizes, first = self._fed("data", 0)
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "sha256", self._digest(sizes, first))
        if self._digest(*self._fed("data", 0)) != self.sha256:
            raise DataError("data(0)", "must be the same batch each time, or no run could be resumed", "another at once",
                            "Draw from the number alone: rng = np.random.default_rng([seed, step]).")
        if self.can_evaluate:
            self._fed("eval_data", 0)

    @property
    def tokenizer(self):
        """That of `data`, where it has one."""
        return getattr(self.data, "tokenizer", None)

    @property
    def unit(self) -> str:
        """Of losses."""
        return getattr(self.data, "unit", "nats")

    @property
    def notes(self) -> list[str]:
        """What a user should know of the batches."""
        return list(dict.fromkeys(note for one in (self.data, self.eval_data) for note in getattr(one, "notes", ())))

    @property
    def sample_prompt(self):
        """Ids that samples continue: those of the functions, of the second where it has some; None where neither has."""
        return getattr(self.eval_data, "prompt", getattr(self.data, "prompt", None))

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end a text."""
        return getattr(getattr(self.data, "speech", None), "stops", ())

    @property
    def can_evaluate(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.eval_data is not None

    def calls(self, step: int) -> list[Call]:
        """What a step is fed: one call."""
        return [self._fed("data", step)[1]]

    def evaluation_calls(self, most: int) -> int:
        """Calls of an evaluation of at most so many."""
        if not self.can_evaluate:
            return 0
        return min(most, len(self.eval_data)) if hasattr(self.eval_data, "__len__") else most

    def mean_loss(self, executors: Executors, most: int) -> float:
        """Mean loss over at most so many batches of `eval_data`, each weighted by what its loss is divided by; no dropout."""
        total, weights = 0.0, 0.0
        for number in range(self.evaluation_calls(most)):
            sizes, feeds = self._fed("eval_data", number)
            executor = executors.of(*sizes)
            weight = divisor_of(executor.program, executor.workload, feeds, None)
            total, weights = total + weight * executor.loss(**feeds), weights + weight
        return total / weights

    def describe(self) -> dict:
        """What a snapshot keeps; as that of a text."""
        own = {name: one.describe() for name, one in (("data", self.data), ("eval_data", self.eval_data))
               if hasattr(one, "describe")}
        return {"drawn": True, "text": None, "tokens": None, "sha256": self.sha256,
                "tokenizer": getattr(self.tokenizer, "name", None), **own}

    def files(self) -> dict[str, bytes]:
        """Files that a snapshot keeps, so that it can decode by itself, where `data` has a tokenizer."""
        return tokenizer_files(self.tokenizer)

    def in_words(self) -> str:
        """What there is, and the sizes of a step."""
        if hasattr(self.data, "in_words"):
            evaluated = f"; to validate: {self.eval_data.in_words()}" if hasattr(self.eval_data, "in_words") else ""
            return f"to train on: {self.data.in_words()}{evaluated}"
        evaluated = "others" if self.can_evaluate else "nothing"
        sizes = " x ".join(str(size) for size in self.sizes[:2] if size is not None)
        return f"batches of a function to train on, {evaluated} to validate, {sizes} a step"

    def _fed(self, name: str, number: int) -> tuple[Shape, Call]:
        """The shape, and the feeds by name, of a function's batch; what it raises is let through."""
        given, where = getattr(self, name)(number), f"{name}({number})"
        if not isinstance(given, Mapping):
            raise ConfigError(where, "must return every feed by name", type(given).__name__,
                              f"Return a dict: {', '.join(self.model.program.feeds)}.")
        given = {n: array for n, array in given.items() if array is not None}
        try:
            shape = shape_of(self.model, given)
            return shape, checked_feeds(self._checks(shape, given), given, fed_by(self.model.program, given).feeds)
        except CllmError as error:
            raise type(error)(f"{where}, {error.where}", error.must, error.got, error.do) from error

    def _check_ids(self, name: str, function) -> None:
        """Refuse before the first step the ids that a function says it will return, and the model does not have."""
        largest, where = getattr(function, "largest", (-1, ""))
        vocabulary = self.model.program.vocabulary
        if vocabulary is not None and largest >= vocabulary:
            raise DataError(f"Trainer({name}=...), {where}", f"must have tokens below the model's vocab_size = {vocabulary}",
                            str(largest), "Make tokens with the model's own tokenizer.")

    def _checks(self, shape: Shape, names: Collection[str]) -> dict[str, FeedCheck]:
        return feed_checks(fed_by(self.model.program, names), Workload(*shape[:2], self.model.dtype))

    def _digest(self, shape: Shape, feeds: Call) -> str:
        """Of what the model is fed: a function may return other dtypes of the same numbers."""
        digest, checks = hashlib.sha256(str(getattr(self.data, "sha256", "")).encode()), self._checks(shape, feeds)
        for name, array in sorted(feeds.items()):
            digest.update(f"{name} {array.shape} ".encode())
            digest.update(array.astype(checks[name].dtype).tobytes())
        return digest.hexdigest()


def drawn_or_text(model: Model, text, tokenizer, data, eval_data, asked: Mapping, then: dict | None) -> Drawn | None:
    """The source of a run by functions; None for a run on a text.

    Parameters
    ----------
    text, tokenizer, data, eval_data : as of `Trainer`
    asked : dict
        Settings by name, as they were asked for.
    then : dict or None
        What the snapshot that is resumed keeps of its source.

    Raises
    ------
    ConfigError, DataError
        When a text is given as well, or a setting of one, or the run began with another source; where there is none, when
        the model cannot be trained on a text. Others as `Drawn`.
    """
    began_drawn = None if then is None else then.get("drawn", False)
    if began_drawn not in (None, data is not None):
        raise ConfigError("Trainer(data=...)", "must be given again when such a run is resumed, and only then",
                          "nothing" if began_drawn else "a function for a run on a text",
                          "In Python, pass the function with which the run began." if began_drawn else "Leave it out.")
    if data is None:
        if eval_data is not None:
            raise ConfigError("Trainer(eval_data=...)", "must go with data=...", "a run on a text",
                              "Leave it out: val_fraction of the text is for validation.")
        check_reads_text(model.program)
        return None
    of_text = [*(name for name in OF_TEXT if name in asked), *(["text"] if text is not None else []),
               *(["tokenizer"] if tokenizer is not None else [])]
    if of_text:
        raise ConfigError("Trainer(data=...)", "must not be given beside what a run on a text has", ", ".join(of_text),
                          "Leave these out: sizes are those that data returns, and a strategy's micro_batch cuts them.")
    drawn = Drawn(model, data, eval_data)
    if asked.get("sample_every") and (drawn.tokenizer is None or drawn.sample_prompt is None):
        raise ConfigError("Trainer(data=..., sample_every=...)", "needs a tokenizer and a prompt that data knows",
                          "none of these",
                          "Give data the attributes tokenizer and prompt (ids), as cllm.FineTuningData has, or leave it out.")
    if began_drawn and drawn.sha256 != then["sha256"]:
        raise DataError("data(0)", "must be the batch with which the run began", "another",
                        "Pass the function as it was, or start afresh in another directory.")
    return drawn


def check_reads_text(program) -> None:
    """Refuse to train a model on a text that is fed something else.

    Raises
    ------
    ConfigError
    """
    if {name: feed.shape for name, feed in program.feeds.items()} != {"tokens": "B T", "targets": "B T"}:
        fed = ", ".join(f"{name} ({feed.shape})" for name, feed in program.feeds.items())
        raise ConfigError("training on a text", "needs a model that is fed tokens (B T) and targets (B T), and nothing else",
                          fed or "nothing", "In Python: cllm.Trainer(model, data=...), a function of the step.")
