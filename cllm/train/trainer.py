"""The loop: draw, zero, differentiate, clip, step; evaluate, snapshot, resume."""

from collections.abc import Iterable, Sequence
from math import exp
from pathlib import Path
from sys import float_info
from time import perf_counter

import numpy as np
import psutil

from cllm import corpus
from cllm.checks import checked_size
from cllm.errors import ConfigError, NonFiniteError, SnapshotError
from cllm.models.gpt import GPT
from cllm.optim import clip_each_grad_norm, clip_grad_norm, optimizer_named
from cllm.sampling import stream_text
from cllm.snapshot import load_snapshot
from cllm.tokenizer import ByteTokenizer
from cllm.train.callbacks import Callback, MetricsFile
from cllm.train.data import load_data, reload_data, snapshot_tokenizer
from cllm.train.evaluation import mean_loss
from cllm.train.executors import Executors
from cllm.train.guard import on_interrupt, only_run_in
from cllm.train.keeper import Keeper
from cllm.train.result import TrainResult
from cllm.train.settings import TrainSettings

Batch = tuple[np.ndarray, np.ndarray]


class Trainer:
    """Trains a model on a text.

    Parameters
    ----------
    model : GPT
    text : str, PathLike, integer array, or None
        A file, a directory of files, tokens, or None for the embedded text.
    out : str, PathLike or None
        Directory for snapshots, metrics and tokens; None keeps nothing on disk.
    resume : bool
        Go on from the latest whole snapshot in `out`, if there is one.
    tokenizer : ByteTokenizer, BPETokenizer or None
        None is the byte tokenizer, or that of the snapshot.
    callbacks : sequence of Callback
    **settings
        Fields of `TrainSettings`. A resumed run takes those of its snapshot and refuses others that change its numbers.

    Attributes
    ----------
    step : int
        Steps taken so far; the next step's number, counted from 0.
    optimizer, rate, executors, settings
    losses : list of float
        Of the steps taken by this object.
    keeper : Keeper
        Knows the snapshots, and which was the best.

    Raises
    ------
    ConfigError, DataError, SnapshotError, BudgetError
        Before anything is trained.
    """

    def __init__(self, model: GPT, text=None, out=None, *, resume: bool = False, tokenizer=None,
                 callbacks: Sequence[Callback] = (), **settings):
        self.out = None if out is None else Path(out)
        self.model, self.step = model, 0
        self.losses: list[float] = []
        self.val_loss: float | None = None
        self.keeper = Keeper(self.out)
        self._stopping = self._running = False
        self._bad_in_a_row, self._pace = 0, 0.0  # the pace: seconds of a step, smoothed
        state = None if self.out is None else self.keeper.find()
        vocabulary = model.config.vocab_size
        if state is None:
            self.settings = TrainSettings(**settings)
            self.data = load_data(text, tokenizer or ByteTokenizer(), self.out, vocabulary)
        elif not resume:
            raise SnapshotError(f"train into {self.out}", "must be a directory without a run",
                                f"snapshots up to {self.keeper.latest.name}",
                                "Resume that run, or choose another directory.")
        else:
            then = state["training"]
            self.settings = TrainSettings(**then["settings"]).resumed(settings, f"resume of {self.out}")
            tokenizer = tokenizer or snapshot_tokenizer(self.keeper.latest, state)
            self.data = reload_data(then["data"], text, tokenizer, self.out, vocabulary)
        s = self.settings
        self.train_tokens, self.val_tokens = corpus.split(self.data.tokens, s.val_fraction, s.seq_len)
        self.windows = corpus.Windows(self.train_tokens, s.seq_len, s.seed)
        self.rate = s.rates()
        self.optimizer = optimizer_named(s.optimizer, model, s.lr, s.betas, s.eps, s.weight_decay)
        self.executors = Executors(model, s, self.optimizer.kind)
        self.executors.of(s.batch_size, s.seq_len)
        if state is not None:
            self._restore(state)
        self.callbacks = [*([MetricsFile(self.out / "metrics.jsonl")] if self.out is not None else []), *callbacks]

    def run(self) -> TrainResult:
        """Train up to the last step, or until told to stop; a run that has ended already does nothing.

        Raises
        ------
        NonFiniteError
            After `max_bad_steps` steps in a row whose loss or gradients were not finite.
        SnapshotError
            When a snapshot cannot be written; the earlier ones are whole.
        """
        begin, first = perf_counter(), self.step
        if self.step < self.settings.steps:
            with only_run_in(self.out), on_interrupt(self.stop):
                self._running = True
                try:
                    for callback in self.callbacks:
                        callback.on_start(self)
                    self.keeper.set_damaged_aside()
                    self._loop()
                finally:
                    self._running = False
                    for callback in reversed(self.callbacks):
                        callback.on_end(self)
        s, best = self.settings, self.keeper.best or (None, None)
        return TrainResult(self.step, self.losses[-1] if self.losses else None, self.val_loss, *best,
                           self.keeper.latest, self.step < s.steps, perf_counter() - begin,
                           (self.step - first) * s.accumulate * s.batch_size * s.seq_len)

    def stop(self) -> None:
        """End the run after the step at hand, with a snapshot."""
        self._stopping = True

    def train_step(self, batches: Iterable[Batch] | None = None) -> float | None:
        """One optimizer step; its loss, or None when it was bad and not applied.

        Parameters
        ----------
        batches : iterable of (tokens, targets), integer arrays of shape B T
            Any shapes; gradients are added up over all, the mean is over all valid targets. None takes the next windows
            of the text.

        Raises
        ------
        NonFiniteError
            When this was the last of too many bad steps in a row.
        """
        batches = self._windows_of_step() if batches is None else list(batches)
        targets = sum(int(np.count_nonzero(np.asarray(t) != -1)) for _, t in batches)
        began, rate = perf_counter(), self.rate(self.step)
        self.model.zero_grad()
        try:
            loss = 0.0
            for number, (tokens, expected) in enumerate(batches):
                executor = self.executors.of(*np.shape(tokens))
                executor.step = self.step * self.settings.accumulate + number
                loss += executor.loss_and_grad(tokens, expected, num_targets=targets)
            norm = self._clip()
            self.optimizer.lr = rate
            self.optimizer.step()
        except NonFiniteError as error:
            self._bad_step(error)
            return None
        seconds = perf_counter() - began
        self.step, self._bad_in_a_row = self.step + 1, 0
        self.losses.append(loss)
        self._pace = seconds if not self._pace else 0.9 * self._pace + 0.1 * seconds
        self._tell("step", loss=loss, rate=rate, grad_norm=norm, seconds=seconds, tokens_per_second=targets / seconds,
                   seconds_left=(self.settings.steps - self.step) * self._pace,
                   rss_bytes=psutil.Process().memory_info().rss)
        return loss

    def evaluate(self, most: int | None = None) -> float:
        """Mean loss in nats per token over windows spread evenly over the validation tokens.

        Parameters
        ----------
        most : int or None
            Batches at most; None is `eval_batches`.
        """
        s = self.settings
        most = checked_size("evaluate(most)", s.eval_batches if most is None else most)
        return mean_loss(self.executors.of(s.batch_size, s.seq_len), self.val_tokens, most * s.batch_size)

    def snapshot(self) -> Path:
        """Write a snapshot now, and delete those that need not be kept."""
        if self.out is None:
            raise ConfigError("Trainer.snapshot()", "needs a directory", "out=None", "Make the Trainer with out=...")
        state = {"settings": self.settings.to_dict(), "data": self.data.describe(), "val_loss": self.val_loss,
                 "bad_in_a_row": self._bad_in_a_row}
        path = self.keeper.write(self.step, self.model, self.optimizer, state, self.data.files(), self.settings.keep)
        self._tell("snapshot", path=str(path))
        return path

    def sample(self, prompt: str = "\n", max_new_tokens: int = 200, **choice) -> str:
        """Text that the model continues `prompt` with; `choice` as of `cllm.generate`."""
        tokenizer = self.data.tokenizer or ByteTokenizer()
        return "".join(piece for _, piece in stream_text(self.model, tokenizer, prompt, max_new_tokens, **choice))

    def _loop(self) -> None:
        s = self.settings
        if not self.step:
            self._evaluate()
        while self.step < s.steps and not self._stopping:
            self.train_step()
            last = self.step == s.steps
            better = (last or self.step % s.eval_every == 0) and self._evaluate()
            due = better or self.step % s.snapshot_every == 0 and not self._bad_in_a_row
            if self.out is not None and (due or last or self._stopping):
                self.snapshot()

    def _windows_of_step(self) -> list[Batch]:
        s, first = self.settings, self.step * self.settings.accumulate * self.settings.batch_size
        return [self.windows.batch(first + a * s.batch_size, s.batch_size) for a in range(s.accumulate)]

    def _clip(self) -> float:
        """Clip as the settings say; the norm of all gradients before."""
        s = self.settings
        if s.clip_by == "each" and s.clip is not None:
            return sum(norm**2 for norm in clip_each_grad_norm(self.model, s.clip).values()) ** 0.5
        return clip_grad_norm(self.model, float_info.max if s.clip is None else s.clip)

    def _bad_step(self, error: NonFiniteError) -> None:
        """Go on to the next windows, the model as it was; give up after too many in a row."""
        self.step += 1
        self._bad_in_a_row += 1
        self._tell("bad_step", where=error.where, in_a_row=self._bad_in_a_row)
        if self._bad_in_a_row >= self.settings.max_bad_steps:
            raise NonFiniteError(f"training, step {self.step}", f"must have a finite one in {self._bad_in_a_row} steps",
                                 f"{error.where}, {error.got}", f"The last good snapshot is {self.keeper.latest}; "
                                 "lower the rate or clip harder, and begin anew from there.") from error

    def _evaluate(self) -> bool:
        """Evaluate and tell; whether it was the best so far."""
        if not len(self.val_tokens):
            return False
        self.val_loss = self.evaluate()
        better = self.keeper.is_better(self.step, self.val_loss)
        perplexity = exp(min(self.val_loss, 700.0)) if self.model.config.loss == "cross_entropy" else None
        self._tell("evaluation", val_loss=self.val_loss, perplexity=perplexity, best=better)
        return better

    def _tell(self, event: str, **values) -> None:
        if self._running:
            for callback in self.callbacks:
                callback.on_event(self, {"event": event, "step": self.step, **values})

    def _restore(self, state: dict) -> None:
        load_snapshot(self.keeper.latest, self.model, self.optimizer)
        self.step = state["step"]
        then = state["training"]
        self.val_loss, self._bad_in_a_row = then["val_loss"], then["bad_in_a_row"]
        self.keeper.best = then["best"] and tuple(then["best"])
