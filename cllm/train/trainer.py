"""The loop: draw, zero, differentiate, clip, step; evaluate, snapshot, resume."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from cllm.checks import checked_size, shown
from cllm.errors import CllmError, ConfigError, NonFiniteError, SnapshotError
from cllm.executor.groups import Team, is_told, together
from cllm.models.model import Model
from cllm.sampling import stream_text
from cllm.snapshot import base_names, load_snapshot, step_of
from cllm.strategies import MemoryBudget
from cllm.threads.counts import checked_threads
from cllm.threads.crowding import crowded
from cllm.tokenizer import BPETokenizer, ByteTokenizer
from cllm.train.beginning import begin
from cllm.train.callbacks import Callback, MetricsFile
from cllm.train.evaluation import Validation
from cllm.train.executors import shape_of
from cllm.train.guard import beginning_in, on_interrupt, only_run_in
from cllm.train.keeper import Keeper
from cllm.train.pace import Paces, smoothed
from cllm.train.result import TrainResult
from cllm.train.shared import write_together
from cllm.train.step import Batch, Call, checked_batches, clip, first_nonfinite, targets_in

BEGIN_ANEW = "lower the rate or clip harder, and begin anew from there."


class Trainer:
    """Trains a model on a text, or on what a function of the step returns.

    Parameters
    ----------
    model : Model
    text : str, PathLike, integers in one axis, or None
        A file, a directory of files, tokens, or None for the embedded text.
    out : str, PathLike or None
        Directory for snapshots, metrics and tokens; None keeps nothing on disk. One run at a time may be in it.
    resume : bool
        Go on from the latest whole snapshot in `out`, if there is one.
    tokenizer : ByteTokenizer, BPETokenizer or None
        None is the byte tokenizer, or that of the snapshot.
    data : callable or None
        In place of a text, for any model: ``data(step)`` returns every feed by name, the batch of that step. It has to return
        the same whenever it is asked for a step: then a run that is resumed, by the number of its step alone, equals the
        straight run. It is given again when one is.
    eval_data : callable or None
        ``eval_data(number)`` returns batch `number`, below `eval_batches`, of every evaluation; None is no evaluation.
    callbacks : sequence of Callback
    base : path or None
        Where the frozen parameters were loaded from as they are: snapshots then hold what is trained, this place and a
        digest of the rest, and a run is resumed with the same alone. None keeps whole models.
    budget : MemoryBudget or None
        That of the settings with "auto" read already (see `MemoryBudget.read`); None reads it now, once for the run.
    num_threads : int or None
        The same as the setting `threads`, by the name that it has elsewhere.
    team : Team or None
        Other processes with which this one trains, see `cllm.distributed`: all make the same Trainer and call the same
        methods. The first writes into `out`, which all have to see, and has the callbacks.
    **settings
        Fields of `TrainSettings`. A resumed run takes those of its snapshot and refuses others that change its numbers.

    Attributes
    ----------
    step : int
        Steps taken so far; the next step's number, counted from 0.
    optimizer, rate, executors, settings
    source : Windowed or Drawn
        What steps and evaluations are fed.
    losses : list of float
        Of the steps taken by this object.
    keeper : Keeper
        Knows the snapshots, and which was the best.
    notes : list of str
        What a user should know before the run goes on.

    Raises
    ------
    ConfigError, DataError, SnapshotError, BudgetError, or what `data` or `eval_data` raised
        Before anything is trained; nothing is left of it in `out`.
    """

    def __init__(self, model: Model, text: Any = None, out: str | PathLike | None = None, *, resume: bool = False,
                 tokenizer: ByteTokenizer | BPETokenizer | None = None,
                 data: Callable[[int], Mapping] | None = None, eval_data: Callable[[int], Mapping] | None = None,
                 callbacks: Sequence[Callback] = (), base: str | PathLike | None = None, budget: MemoryBudget | None = None,
                 num_threads: int | None = None, team: Team | None = None, **settings: Any):
        try:
            self.out = None if out is None else Path(out)
        except TypeError as error:
            raise ConfigError("Trainer(out=...)", "must be a path or None", shown(out), "Name a directory.") from error
        self.model, self.step = model, 0
        self._team = team if team is not None and team.size > 1 else None
        self.leads = self._team is None or self._team.rank == 0
        self.losses: list[float] = []
        self.val_loss: float | None = None
        self.keeper = Keeper(self.out)
        self._stopping = self._running = False
        self._failure: Exception | None = None
        self._bad_in_a_row, self._pace, self._paces = 0, 0.0, Paces()  # the pace: seconds of a step, smoothed
        self._torn_at: dict[int, NonFiniteError] = {}  # steps that were broken off when parameters had moved: bad ones
        self._losses_at: dict[int, int] = {}  # of the steps of snapshots: losses so far
        settings |= {} if num_threads is None else {"threads": num_threads}
        with beginning_in(self.out if self.leads else None):
            state = None if self.out is None else self.keeper.find()
            if state is not None and not resume:
                raise SnapshotError(f"train into {self.out}", "must be a directory without a run",
                                    f"snapshots up to {self.keeper.latest.name}",
                                    "Resume that run, or choose another directory.")
            found = begin(model, text, tokenizer, data, eval_data, base, budget, settings, self.keeper, state, self._team)
            together(self._team, "run", lambda: None, lambda: {"out": str(self.out),
                                                               "data": found.source.describe().get("sha256")})
        self.settings, self.source = found.settings, found.source
        self.optimizer, self.executors = found.optimizer, found.executors
        self.notes, self.rate = found.notes, found.settings.rates()
        if self._team is not None:
            self.notes += crowded(self._team, checked_threads(self.settings.threads))
        if state is not None:
            self.step, then = state["step"], state["training"]
            self.val_loss, self._bad_in_a_row = then["val_loss"], then["bad_in_a_row"]
        self._validation = Validation(self.source, model.program.head.layer.in_nats, self.keeper)
        metrics = [] if self.out is None else [MetricsFile(self.out / "metrics.jsonl")]
        self.callbacks = self._listening = [*metrics, *callbacks] if self.leads else []

    def __repr__(self) -> str:
        return (f"Trainer(step {self.step} of {self.settings.steps}, {self.settings.batch_size} x {self.settings.seq_len}, "
                f"{self.settings.strategy}, {self.optimizer!r}, out={None if self.out is None else str(self.out)!r})")

    def run(self) -> TrainResult:
        """Train up to the last step, or until told to stop; a run that has ended already does nothing. One that was stopped
        goes on when called again.

        Raises
        ------
        NonFiniteError
            After `max_bad_steps` steps in a row whose loss or gradients were not finite, and where weights have become so.
        SnapshotError
            When a snapshot cannot be written; the earlier ones are whole.
        CllmError, OSError, MemoryError, or what a callback raised
            When a step or a callback failed; after a snapshot of the steps that went well.
        """
        begin, first = perf_counter(), self.step
        self._stopping, self._failure = False, None
        if self.step < self.settings.steps:
            with only_run_in(self.out if self.leads else None), on_interrupt(self.stop):
                if self.out is not None:
                    together(self._team, "run", self.keeper.begin if self.leads else lambda: None)
                self._running, self._listening = True, list(self.callbacks)
                try:
                    for callback in self.callbacks:
                        callback.on_start(self)
                    self.keeper.damaged.clear()  # they have heard of them
                    self._loop()
                finally:
                    self._running = False
                    for callback in reversed(self.callbacks):
                        callback.on_end(self)
        if self._failure is not None:
            raise self._failure
        best, tokens = self.keeper.best or (None, None), self.source.tokens_of_step
        return TrainResult(self.step, self.losses[-1] if self.losses else None, self.val_loss, *best, self.keeper.latest,
                           self.step < self.settings.steps, perf_counter() - begin,
                           None if tokens is None else (self.step - first) * tokens)

    def stop(self) -> None:
        """End the run that is going on after the step at hand, with a snapshot."""
        self._stopping = True

    def train_step(self, batches: Iterable[Batch] | Mapping | None = None) -> float | None:
        """One optimizer step; its loss, or None when it was bad and not applied.

        Parameters
        ----------
        batches : iterable of (tokens, targets), integer arrays of shape B T, or a dict of feeds by name
            Any shapes; gradients of pairs are added up, the mean is over all valid targets. None takes the next windows of
            the text, or what `data` returns.

        Raises
        ------
        ShapeError, DtypeError, TokenError
            When there is no batch, or no target, or one is malformed; nothing is changed but gradients.
        NonFiniteError
            When this was the last of too many bad steps in a row, or had moved some parameters and there is no snapshot to go
            back to.
        """
        began, rate = perf_counter(), self.rate(self.step)
        calls = together(self._team, "step", lambda: self.source.calls(self.step) if batches is None
                         else checked_batches(batches))
        shapes = [shape_of(self.model, call) for call in calls]
        targets = targets_in(calls)
        if batches is None and self.step in self._torn_at:
            self._bad_step(self._torn_at[self.step])
            return None
        self.optimizer.lr = rate
        try:
            loss, norm = (self._one_call(shapes[0], calls[0]) if len(calls) == 1
                          else self._many_calls(shapes, calls, targets))
        except NonFiniteError as error:
            if not self.model.torn:
                self._bad_step(error)
                return None
            self._torn_at[self.step] = error
            if not self._restored():
                raise
            return None
        seconds = perf_counter() - began
        self.step, self._bad_in_a_row = self.step + 1, 0
        self.losses.append(loss)
        self._pace = smoothed(self._pace, seconds)
        apart = {} if self._team is None else self._paces.seen(self.executors.of(*shapes[0]).process_seconds)
        self._tell("step", loss=loss, rate=rate, grad_norm=norm, seconds=seconds,
                   tokens_per_second=None if targets is None else targets / seconds,
                   examples_per_second=sum(batch for batch, *_ in shapes) / seconds,
                   seconds_left=(self.settings.steps - self.step) * self._pace,
                   rss_bytes=psutil.Process().memory_info().rss, **apart)
        return loss

    def _one_call(self, shape: tuple[int, int | None], call: Mapping) -> tuple[float, float]:
        """Loss, and the norm of the gradients, of a step that is one call."""
        executor = self.executors.of(*shape)
        executor.step = self.step * self.settings.accumulate
        s = self.settings
        loss = executor.train_step(**call, optimizer=self.optimizer, clip_norm=s.clip, clip_by=s.clip_by)
        self.keeper.proven = self.step
        return loss, executor.grad_norm

    def _many_calls(self, shapes: list[tuple[int, int | None]], calls: list[Call], targets: int | None) -> tuple[float, float]:
        """The same of one whose gradients are added up over several."""
        self.model.zero_grad()
        loss = 0.0
        for number, (shape, call) in enumerate(zip(shapes, calls, strict=True)):
            executor = self.executors.of(*shape)
            executor.step = self.step * self.settings.accumulate + number
            loss += executor.loss_and_grad(**call, num_targets=targets)
        self.keeper.proven = self.step
        norm = clip(self.model, self.settings)
        self.optimizer.step()
        return loss, norm

    def _restored(self) -> bool:
        """Go back to the last snapshot, where the model is torn; False without one. What follows is taken again, to the same
        bits, but for the step that tore it."""
        if self.out is None or self.keeper.latest is None:
            return False
        _, state = load_snapshot(self.keeper.latest, self.model, self.optimizer)
        then = state["training"]
        self.keeper.restore(then)
        self.step, self.val_loss, self._bad_in_a_row = state["step"], then["val_loss"], then["bad_in_a_row"]
        del self.losses[self._losses_at.get(self.step, 0):]
        self._tell("restored", path=str(self.keeper.latest))
        return True

    def evaluate(self, most: int | None = None) -> float:
        """Mean loss in nats per token over windows spread evenly over the validation tokens, or over batches of `eval_data`.

        Parameters
        ----------
        most : int or None
            Batches at most; None is `eval_batches`.

        Raises
        ------
        ConfigError
            When there is nothing to evaluate on.
        """
        most = checked_size("evaluate(most)", self.settings.eval_batches if most is None else most)
        if not self.source.can_evaluate:
            raise ConfigError("Trainer.evaluate()", "needs something to evaluate on", "a run without validation",
                              "Begin with val_fraction above 0, or pass eval_data.")
        return self.source.mean_loss(self.executors, most)

    def snapshot(self) -> Path:
        """Write a snapshot now, and delete those that need not be kept.

        Raises
        ------
        ConfigError, SnapshotError
            When there is no directory, or it cannot be written.
        NonFiniteError
            When weights or the optimizer's state are not finite: nobody could go on from there.
        """
        if self.out is None:
            raise ConfigError("Trainer.snapshot()", "needs a directory", "out=None", "Make the Trainer with out=...")
        bad = first_nonfinite(self.model, self.optimizer)
        if self._team is not None:
            bad = next((found for found in self._team.tell(bad) if found is not None), None)
        if bad is not None:
            raise NonFiniteError(f"snapshot of step {self.step}", "weights and the optimizer's state must be finite",
                                 f"NaN or infinity in {bad}", f"{self._last_good()}; {BEGIN_ANEW}")
        state = {"settings": self.settings.to_dict(), "data": self.source.describe(), "val_loss": self.val_loss,
                 "bad_in_a_row": self._bad_in_a_row}
        path = write_together(self._team, self.optimizer, lambda optimizer: self.keeper.write(
            self.step, self.model, optimizer, state, self.source.files(), self.settings.keep), self.keeper)
        self._losses_at[self.step] = len(self.losses)
        self._tell("snapshot", path=str(path))
        return path

    def sample(self, prompt: Any = "\n", max_new_tokens: int = 200, **choice: Any) -> str:
        """Text that the model continues `prompt` with, a text or ids; `choice` as of `cllm.generate`."""
        tokenizer = self.source.tokenizer or ByteTokenizer()
        return "".join(piece for _, piece in stream_text(self.model, tokenizer, prompt, max_new_tokens, self.source.stops,
                                                         **choice))

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of one snapshot, but for some kilobytes."""
        left = set() if self.keeper.base is None else set(base_names(self.model))
        parameters = sum(a.size * a.dtype.itemsize for name, a in self.model.parameters.items() if name not in left)
        return parameters + sum(a.nbytes for a in self.optimizer.stored().values())

    @property
    def disk_bytes(self) -> int:
        """Bytes that snapshots may take at once: those kept, the best, the last good one, and one that is being written."""
        return (self.settings.keep + 3) * self.snapshot_bytes

    def _loop(self) -> None:
        s = self.settings
        if not self.step:
            self._evaluate()
        while self.step < s.steps and not self._is_stopping():
            failed = not self._survived_step()
            last = self.step == s.steps
            better = not failed and (last or self.step % s.eval_every == 0) and self._evaluate()
            if s.sample_every and self.step % s.sample_every == 0 and not failed and self.leads:
                self._sample()
            self._is_stopping()
            due = better or self.step % s.snapshot_every == 0 and not self._bad_in_a_row
            if self.out is not None and (due or last or self._stopping) and not self._is_saved():
                self.snapshot()

    def _is_stopping(self) -> bool:
        """Whether any process has been told to stop."""
        if self._team is not None:
            self._stopping = any(self._team.tell(self._stopping))
        return self._stopping

    def _survived_step(self) -> bool:
        """Take the next step. One that fails for another reason than its numbers ends the run, after a snapshot."""
        before = self.step
        try:
            self.train_step()
        except NonFiniteError:
            raise
        except Exception as error:  # whatever it is: `data` is the caller's own
            if self._team is not None and not is_told(error):
                raise  # the others wait in the step, and are to be ended
            self._fail(error)
            if self.model.torn:
                with suppress(CllmError):  # a disk that fails on may keep it torn; snapshots are whole, the first error is told
                    self._restored()
            return False
        return self.step > before

    def _is_saved(self) -> bool:
        """Whether there is nothing to save that is not in the latest snapshot."""
        if self.model.torn:
            return True
        saved = self.keeper.latest is not None and step_of(self.keeper.latest) == self.step
        nothing = not self.step or saved and self._failure is not None
        return nothing if self._team is None else self._team.tell(nothing)[0]  # the first has the callbacks that may fail

    def _fail(self, error: Exception) -> None:
        """End the run after the step at hand; it then raises the first that failed."""
        self._failure = self._failure or error
        self.stop()

    def _bad_step(self, error: NonFiniteError) -> None:
        """Go on to the next batch, the model as it was; give up after too many in a row."""
        self.step += 1
        self._bad_in_a_row += 1
        self._tell("bad_step", where=error.where, in_a_row=self._bad_in_a_row)
        if self._bad_in_a_row >= self.settings.max_bad_steps:
            raise NonFiniteError(f"training, step {self.step}", f"must have a finite one in {self._bad_in_a_row} steps",
                                 f"{error.where}, {error.got}", f"{self._last_good()}; {BEGIN_ANEW}") from error

    def _last_good(self) -> str:
        good = None if self.out is None else self.keeper.good
        return "There is no good snapshot" if good is None else f"The last good snapshot is {good}"

    def _evaluate(self) -> bool:
        """Evaluate and tell; whether it was the best so far."""
        if not self.source.can_evaluate:
            return False
        try:
            found = self._validation.look(self.step, self.evaluate)
        except Exception as error:  # whatever it is: `eval_data` is the caller's own
            if self._team is not None and not is_told(error):
                raise
            self._fail(error)
            return False
        self.val_loss = found["val_loss"]
        self._tell("evaluation", **found)
        if found["since_best"] >= (self.settings.stop_when_worse or inf):
            self.stop()
        return found["best"]

    def _sample(self) -> None:
        try:
            text = self.sample(self.source.sample_prompt, seed=self.step, num_threads=self.settings.threads)
        except NonFiniteError as error:
            text = f"none: {error}"
        self._tell("sample", text=text)

    def _tell(self, event: str, **values) -> None:
        if self._running:
            for callback in list(self._listening):
                try:
                    callback.on_event(self, {"event": event, "step": self.step, **values})
                except Exception as error:  # whatever it is, the steps taken so far are not lost for it
                    self._listening.remove(callback)
                    self._fail(error)
