"""What a run on a text is fed: windows of its first part, in the order of a seed; its last part is for validation."""

from typing import ClassVar

from cllm import corpus
from cllm.train.data import Data
from cllm.train.evaluation import bytes_per_token, mean_loss
from cllm.train.executors import Executors
from cllm.train.settings import TrainSettings
from cllm.train.step import Call


class Windowed:
    """Batches of a text.

    Parameters
    ----------
    data : Data
    settings : TrainSettings

    Attributes
    ----------
    train_tokens, val_tokens : integer arrays of shape (n,)
    windows : Windows
        Of the first.
    sizes : (B, T)

    Raises
    ------
    DataError
        When a part is shorter than one window.
    """

    unit: ClassVar[str] = "nats per token"
    stops: ClassVar[tuple[int, ...]] = ()  # a text has no end
    notes: ClassVar[tuple[str, ...]] = ()
    by_heart: ClassVar[str] = "the text by heart (--stop-when-worse ends such a run, cllm sample --best takes the best)"

    def __init__(self, data: Data, settings: TrainSettings):
        self.data, self._settings = data, settings
        self.sizes = settings.batch_size, settings.seq_len
        self.train_tokens, self.val_tokens = corpus.split(data.tokens, settings.val_fraction, settings.seq_len)
        self.windows = corpus.Windows(self.train_tokens, settings.seq_len, settings.seed)
        self.tokenizer, self.describe, self.files = data.tokenizer, data.describe, data.files

    @property
    def can_evaluate(self) -> bool:
        """Whether there is anything to evaluate on."""
        return bool(len(self.val_tokens))

    @property
    def sample_prompt(self) -> str:
        """What samples continue."""
        return self._settings.sample_prompt

    @property
    def tokens_of_step(self) -> int:
        """Tokens that a step trains on."""
        s = self._settings
        return s.accumulate * s.batch_size * s.seq_len

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text that a target of an evaluation stands for."""
        s = self._settings
        return bytes_per_token(self.data, self.val_tokens, s.seq_len, s.eval_batches * s.batch_size)

    def calls(self, step: int) -> list[Call]:
        """What a step is fed, call after call."""
        s, first = self._settings, step * self._settings.accumulate * self._settings.batch_size
        return [dict(zip(("tokens", "targets"), self.windows.batch(first + a * s.batch_size, s.batch_size), strict=True))
                for a in range(s.accumulate)]

    def evaluation_calls(self, most: int) -> int:
        """Calls of an evaluation of at most so many."""
        s = self._settings
        windows = min(most * s.batch_size, (len(self.val_tokens) - 1) // s.seq_len) if self.can_evaluate else 0
        return -(-windows // s.batch_size)

    def mean_loss(self, executors: Executors, most: int) -> float:
        """Mean loss over at most so many batches of windows spread evenly over the validation tokens."""
        return mean_loss(executors.of(*self.sizes), self.val_tokens, most * self._settings.batch_size)

    def in_words(self) -> str:
        """What there is, and the sizes of a step."""
        s = self._settings
        return (f"{len(self.train_tokens):,} tokens to train on, {len(self.val_tokens):,} to validate, "
                f"{s.accumulate * s.batch_size} x {s.seq_len} a step")
