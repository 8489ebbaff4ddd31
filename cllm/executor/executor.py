"""Interprets a schedule; names no strategy and no layer."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from cllm import _kernels as kernels
from cllm._build_info import DEBUG
from cllm.checks import LARGEST_SEED, checked_flag, checked_size
from cllm.errors import ConfigError
from cllm.executor.binding import Binder, Call
from cllm.executor.feeds import Feeds
from cllm.executor.forward_runs import ForwardRuns
from cllm.executor.nonfinite import DIVERGED, check_gradients, check_loss
from cllm.executor.rebuild_check import RebuildCheck
from cllm.executor.spilling import SpillFile
from cllm.executor.witness import Slab
from cllm.models.model import Model
from cllm.planner.ledger import Ledger
from cllm.planning import decide
from cllm.plans.plan import Plan
from cllm.program.dims import elements
from cllm.program.packed import packed as packed_form
from cllm.program.trained import refuse_untrained
from cllm.program.workload import Workload
from cllm.schedule.build import ITEMSIZES, Schedule
from cllm.schedule.report import MemoryReport
from cllm.strategies import StrategyLike
from cllm.threads.turns import Turn


class Executor:
    """Runs training steps of a model under a strategy, in memory that is known before the first.

    Several Python threads may use one executor: each call waits for the one before it. Executors of one model may run side
    by side, but for what adds to its gradients, which has its turn, too. In a forked child an executor works on; of a step
    that another thread was in at the fork, gradients are undefined there until ``zero_grad``.

    Parameters
    ----------
    model : Model
    batch_size : int
    seq_len : int or None
        B and T of every call; None for a model without time steps.
    strategy : strategy, Plan or name
    optimizer : str
        Whose state counts in ``memory.total_bytes``; stepping with one of larger state is refused.
    num_threads : int or None
        None takes the default, see `set_num_threads`. Bits of results do not depend on it.
    seed : int
        Of the dropout masks.
    determinism_check : {"off", "sampled", "bits"}
        Compare rebuilt values with the originals, none, one in eight, or all.
    packed : bool
        Sequences hold several documents each: a step is fed `positions`, too, an int32 array of shape B T that counts from 0
        in each document, and no row sees another document.

    Attributes
    ----------
    program : Program
        What is run: the model's, or its packed form.

    Raises
    ------
    ConfigError, PlanError, BudgetError
        Before any array is made.
    """

    def __init__(self, model: Model, batch_size: int, seq_len: int | None = None, strategy: StrategyLike = "cache",
                 optimizer: str = "adamw", num_threads: int | None = None, seed: int = 0, determinism_check: str = "off",
                 packed: bool = False):
        if not isinstance(model, Model):
            raise ConfigError("Executor(model)", "must be a cllm.Model", type(model).__name__,
                              "Make one with cllm.Model(architecture).")
        self.workload = Workload(batch_size, seq_len, model.dtype, optimizer, num_threads)
        self._seed = checked_size("Executor(seed=...)", seed, 0, LARGEST_SEED)
        self._check = RebuildCheck.of(determinism_check)
        self._model, self._revision = model, model.revision
        packed = checked_flag("Executor(packed=...)", packed)
        self.program = packed_form(model.program) if packed else model.program
        ledger = Ledger(self.program, self.workload, held_bytes=model.held_bytes)
        self.plan: Plan = decide(strategy, ledger)
        if self._check.every and not self.plan.exact:
            raise ConfigError("Executor(determinism_check=...)", "must be 'off' where values are compressed",
                              repr(determinism_check), "What is rebuilt from a compressed value differs by design.")
        self.schedule: Schedule
        self.memory: MemoryReport
        self.schedule, self.memory = ledger.build(self.plan)
        self._step = 0
        self._turn = Turn("the executor")
        with kernels.Threads(self.workload.threads):  # refused where the system does not give so many
            self._slab = Slab(self.memory.arena_bytes)
        self._spill = self._open_spill()
        self._feeds = Feeds(self.program, self.workload, self.schedule.micro_batch)
        self._forward = ForwardRuns(model, self.program, self.workload, self.plan, self._slab.bytes, self._feeds)
        self._calls: dict[int, list[Call]] = {}
        model.attach(self.workload.optimizer)

    def __repr__(self) -> str:
        work, plan = self.workload, self.plan
        return (f"Executor({work.batch} x {work.time}, micro-batch {plan.micro_batch or work.batch}, {work.threads} threads: "
                f"arena {self.memory.arena_bytes / 1e6:,.1f} MB, total {self.memory.total_bytes / 1e6:,.1f} MB with "
                f"{work.optimizer})")

    @property
    def step(self) -> int:
        """Whole-batch `loss_and_grad` calls so far; set it to resume. It keys dropout."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step = checked_size("Executor.step", value, 0, LARGEST_SEED)

    @property
    def high_water_bytes(self) -> int:
        """Highest byte of the arena that the last training step wrote, as found in the memory itself."""
        return self._slab.high_water_bytes()

    def loss_and_grad(self, tokens: ArrayLike | None = None, targets: ArrayLike | None = None,
                      num_targets: int | None = None, **feeds: ArrayLike) -> float:
        """Forward and backward over one batch.

        Parameters
        ----------
        tokens, targets : integer arrays of shape B T
            Targets of -1 are ignored.
        num_targets : int or None
            The divisor of the loss; None is what the model's head says: the number of valid targets of this call.
        **feeds : arrays
            Whatever else it is fed, by name (``executor.program.feeds``).

        Returns
        -------
        float
            Mean loss over the targets. Gradients are *added* into ``model.gradients``.

        Raises
        ------
        ShapeError, DtypeError, TokenError
            Nothing is changed.
        NonFiniteError
            Loss or a gradient is NaN or infinite; gradients are undefined until ``zero_grad``.
        """
        return self._train({"tokens": tokens, "targets": targets, **feeds}, num_targets, _run)

    def timed_step(self, tokens: ArrayLike | None = None, targets: ArrayLike | None = None, **feeds: ArrayLike) -> np.ndarray:
        """`loss_and_grad`, with the seconds of every operation, in the order of ``schedule.whole_step(schedule.ops)``.

        The clock is read once between two operations, in compiled code; `profiling/overhead.py` measures what it costs.
        """
        seconds = np.empty(len(self.schedule.whole_step(self.schedule.ops)))
        done = 0

        def run(calls: list[Call]) -> None:
            nonlocal done
            kernels.call_timed(calls, seconds=seconds[done:done + len(calls)])
            done += len(calls)

        self._train({"tokens": tokens, "targets": targets, **feeds}, None, run)
        return seconds

    def loss(self, tokens: ArrayLike | None = None, targets: ArrayLike | None = None, **feeds: ArrayLike) -> float:
        """Mean loss over the valid targets, without gradients, dropout or kept activations; as `loss_and_grad`."""
        with self._turn(), kernels.Threads(self.workload.threads):
            count = self._feeds.take({"tokens": tokens, "targets": targets, **feeds})
            loss = self._forward.loss() / count
            check_loss("loss", loss, self._model, self._forward, DIVERGED)
            return loss

    def logits(self, tokens: ArrayLike | None = None, **feeds: ArrayLike) -> np.ndarray:
        """What the head's forward makes, without dropout: scores of every next token, an array of shape B T V.

        It is fed what forward reads; errors as `loss_and_grad`.
        """
        with self._turn(), kernels.Threads(self.workload.threads):
            self._feeds.take_inputs({"tokens": tokens, **feeds})
            return self._forward.logits()

    # a step

    def _train(self, feeds: dict, num_targets: int | None, run: Callable[[list[Call]], None]) -> float:
        threads = self.workload.threads
        with self._turn(), self._model.turn(), kernels.Threads(threads):
            refuse_untrained("loss_and_grad", self._model.program)
            if self._model.revision != self._revision:
                raise ConfigError("loss_and_grad", "must be of an executor that was made for what the model trains now",
                                  "one from before model.trainable was set", "Make the executor again.")
            self._model.threads = threads
            return self._one_step(feeds, num_targets, run)

    def _one_step(self, feeds: dict, num_targets: int | None, run: Callable[[list[Call]], None]) -> float:
        count = self._feeds.take(feeds, num_targets)
        if self._spill is not None:
            self._spill.begin()
        self._slab.mark()
        self._feeds.key(self._seed, self._step)
        try:
            for start, size in self._feeds.cuts():
                self._feeds.place(start, size)
                calls = self._bound(size)
                self._check.begin(self._step, start)
                run(calls[:self.schedule.epilogue])
            run(calls[self.schedule.epilogue:])
        finally:
            if self._spill is not None:
                self._spill.settle()
        loss = float(self._feeds.part["loss"][0]) / count
        where = f"loss_and_grad, step {self._step}"
        check_loss(where, loss, self._model, self._forward)
        check_gradients(where, self._model)
        self._step += 1
        return loss

    def _bound(self, size: int) -> list[Call]:
        """The calls of the schedule for micro-batches of `size` sequences, made at first use."""
        if size not in self._calls:
            rows = {"R": self.schedule.loss_rows}
            binder = Binder(self.schedule, self.memory.arena, self._slab.bytes, self.workload.letters(size) | rows,
                            self.workload.letters() | rows, self._model.parameters, self._model.tables,
                            self._model.gradients, self._feeds.of(size), self._feeds.whole, self._spill)
            calls = self._check.wrap([binder.call(op) for op in self.schedule.ops], self.schedule, binder)
            self._calls[size] = binder.poisoned(calls) if DEBUG else calls
        return self._calls[size]

    def _open_spill(self) -> SpillFile | None:
        letters = self.workload.letters(self.schedule.micro_batch)
        sizes = {b.index: elements(b.shape, letters) * ITEMSIZES[b.dtype] for b in self.schedule.buffers if b.kind == "disk"}
        return SpillFile(self.plan.spill_directory, sizes) if sizes else None


def _run(calls: list[Call]) -> None:
    for call in calls:
        call()
