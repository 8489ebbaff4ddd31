"""Interprets a schedule; names no strategy and no layer."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cllm import _kernels as kernels
from cllm._build_info import DEBUG, VERSION
from cllm.arrays import digest_of
from cllm.checks import LARGEST_SEED, checked_flag, checked_size
from cllm.dispatch import arithmetic
from cllm.errors import ConfigError, PlanError
from cllm.executor.binding import Binder, Call
from cllm.executor.feeds import Feeds
from cllm.executor.forward_runs import ForwardRuns
from cllm.executor.groups import Groups, Team
from cllm.executor.interrupts import held_interrupts
from cllm.executor.nonfinite import DIVERGED, check_gradients, check_loss
from cllm.executor.rebuild_check import RebuildCheck
from cllm.executor.spilling import SpillFile
from cllm.executor.updating import Updating
from cllm.executor.witness import Slab
from cllm.models.model import Model
from cllm.planner.disks import check_directory
from cllm.planner.ledger import Ledger
from cllm.planning import decide
from cllm.plans.plan import Plan
from cllm.program.dims import elements
from cllm.program.packed import packed as packed_form
from cllm.program.trained import refuse_untrained
from cllm.program.workload import Workload
from cllm.schedule.build import ITEMSIZES, Schedule, build_schedule
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
    states : str or None
        Where the optimizer's states are: "memory", or "disk:DIR", fetched and stored while kernels run; None is as the
        strategy decides, in memory unless a budget moves them. Those on disk are for `train_step`.
    update_in_backward : bool or None
        Update each parameter in backward, its gradient being room in the arena; None is as the strategy decides. It is for
        `train_step` alone.
    clip_by : {"all", "each"} or None
        How `train_step` will clip, by which a budget tells the seconds of its plans.
    groups : int
        A power of two that divides `batch_size`: the batch is cut into so many groups, in order, each group's gradient and
        loss are summed from zero, and those of all are added in the order of a binary tree. Bits depend on it, and with it
        on nothing that they did not depend on before; that of `cllm.distributed.Executor` for any number of processes are
        these.
    team : Team or None
        Other processes that take their share of the groups, see `cllm.distributed`.

    Attributes
    ----------
    program : Program
        What is run: the model's, or its packed form.

    Raises
    ------
    ConfigError, PlanError, BudgetError, SpillError
        Before any array is made.
    """

    def __init__(self, model: Model, batch_size: int, seq_len: int | None = None, strategy: StrategyLike = "cache",
                 optimizer: str = "adamw", num_threads: int | None = None, seed: int = 0, determinism_check: str = "off",
                 packed: bool = False, states: str | None = None, update_in_backward: bool | None = None,
                 clip_by: str | None = None, groups: int = 1, team: Team | None = None):
        if not isinstance(model, Model):
            raise ConfigError("Executor(model)", "must be a cllm.Model", type(model).__name__,
                              "Make one with cllm.Model(architecture).")
        model.torn.refuse()
        self.workload = Workload(batch_size, seq_len, model.dtype, optimizer, num_threads, clip_by, groups,
                                 1 if team is None else team.size)
        self._groups = Groups(self.workload, team)
        self._seed = checked_size("Executor(seed=...)", seed, 0, LARGEST_SEED)
        self._check = RebuildCheck.of(determinism_check)
        self._model, self._revision = model, model.revision
        packed = checked_flag("Executor(packed=...)", packed)
        self.program = packed_form(model.program) if packed else model.program
        ledger = Ledger(self.program, self.workload, held_bytes=model.held_bytes)
        self.plan: Plan = decide(strategy, ledger, states, update_in_backward)
        if self._check.every and not self.plan.exact:
            raise ConfigError("Executor(determinism_check=...)", "must be 'off' where values are compressed",
                              repr(determinism_check), "What is rebuilt from a compressed value differs by design.")
        if self.plan.states_on_disk:
            check_directory("Executor(states=...)", self.plan.states.partition(":")[2], 0)
        self.schedule: Schedule
        self.memory: MemoryReport
        self.schedule, self.memory = ledger.build(self.plan)
        self._step = 0
        self._turn = Turn("the executor")
        with kernels.Threads(self.workload.threads):  # refused where the system does not give so many
            self._slab = Slab(self.memory.arena_bytes)
        self._spill = self._open_spill()
        self._feeds = Feeds(self.program, self.workload, self.schedule.micro_batch)
        self._forward = ForwardRuns(model, self.program, self.workload, self.plan, self._slab.bytes, self._feeds, self._groups)
        self._updating = Updating(model, self.workload, self._check_loss, self._groups)
        self._schedules = {"step" if self._groups.shared else self.plan.mode: self.schedule}
        self._calls: dict[tuple[str, int], list[Call]] = {}
        self._divisor, self._loss_sum, self._marked = 1.0, 0.0, False
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
        self._refuse_if_updating("loss_and_grad")
        return self._train({"tokens": tokens, "targets": targets, **feeds}, num_targets, kernels.call_each)

    def train_step(self, tokens: ArrayLike | None = None, targets: ArrayLike | None = None, optimizer: Any = None,
                   clip_norm: float | None = None, clip_by: str = "all", **feeds: ArrayLike) -> float:
        """Forward, backward and update over one batch, from gradients of zero, which they are again afterwards.

        Bits are those of `loss_and_grad`, clipping, and ``optimizer.step()``.

        Parameters
        ----------
        tokens, targets, **feeds : as of `loss_and_grad`
        optimizer : AdamW, Adam, SGD or Grouped
            Of this model.
        clip_norm : float or None
            Gradients are scaled by min(1, clip_norm / norm); None leaves them.
        clip_by : {"all", "each"}
            The norm of all together, or of each array by itself. Where parameters are updated in backward, that of all takes
            a backward of its own, before.

        Returns
        -------
        float
            Mean loss over the targets; `grad_norm` has the norm of all gradients, before.

        Raises
        ------
        ShapeError, DtypeError, TokenError, ConfigError, OptimizerError
            Nothing is changed but gradients.
        NonFiniteError
            Loss or a gradient is NaN or infinite. Parameters and states are untouched, unless the error says that some had
            moved.
        SpillError
            What is on disk cannot be read or written. If some parameters had moved, the error says so.
        TornError
            An earlier step was broken off when some parameters had moved: load a snapshot.
        KeyboardInterrupt
            After the step, where Ctrl-C came within it; a second one breaks it off.
        """
        with held_interrupts(), self._turn(), self._model.turn(), kernels.Threads(self.workload.threads):
            self._refuse_others("train_step")
            self._model.torn.refuse()
            self._model.threads = self.workload.threads
            self._updating.begin(optimizer, clip_norm, clip_by, self.plan.states)
            return self._whole_step({"tokens": tokens, "targets": targets, **feeds})

    def share(self, optimizer: Any) -> None:
        """Make ready an optimizer for `train_step`: its states in their place, and of several processes' this one's part."""
        optimizer.keep_states(self.plan.states)
        if self._groups.shared:
            optimizer.share_states(self.workload.processes, self._groups.part)

    def measure(self, tokens: ArrayLike | None = None, targets: ArrayLike | None = None, **feeds: ArrayLike) -> float:
        """Norm of all gradients of a batch; nothing moves, and no gradient is kept. For plans that update in backward."""
        self._refuse_others("measure")
        if not self.plan.update_in_backward:
            raise PlanError("Executor.measure", "is for plans that update in backward", "one that keeps gradients",
                            "Call loss_and_grad, and take the norm of model.gradients.")
        with self._turn(), self._model.turn(), kernels.Threads(self.workload.threads):
            self._model.torn.refuse()
            self._updating.where = f"measure, step {self._step}"
            self._take({"tokens": tokens, "targets": targets, **feeds}, None)
            self._updating.measuring = True
            self._run("step", kernels.call_each)
            return self._updating.norm

    @property
    def grad_norm(self) -> float:
        """Norm of all gradients in the last `train_step`, before they were clipped."""
        return self._updating.norm

    @property
    def process_seconds(self) -> list[float]:
        """Of the last batch, from its begin to its loss: the own work of each process, without waiting for others."""
        return list(self._groups.seconds)

    @property
    def received_bytes(self) -> int:
        """Of gradients and parameters that other processes have sent to this one so far."""
        return self._groups.received_bytes

    def timed_step(self, tokens: ArrayLike | None = None, targets: ArrayLike | None = None, **feeds: ArrayLike) -> np.ndarray:
        """`loss_and_grad`, with the seconds of every operation, in the order of ``schedule.whole_step(schedule.ops)``.

        The clock is read once between two operations, in compiled code; `profiling/overhead.py` measures what it costs.
        """
        schedule = self._schedule("train")
        seconds = np.empty(len(schedule.whole_step(schedule.ops)))
        done = 0

        def run(calls: list[Call]) -> None:
            nonlocal done
            kernels.call_timed(calls, seconds=seconds[done:done + len(calls)])
            done += len(calls)

        self._refuse_if_updating("timed_step")
        self._train({"tokens": tokens, "targets": targets, **feeds}, None, run)
        return seconds

    def loss(self, tokens: ArrayLike | None = None, targets: ArrayLike | None = None, **feeds: ArrayLike) -> float:
        """Mean loss over the valid targets, without gradients, dropout or kept activations; as `loss_and_grad`."""
        with self._turn(), kernels.Threads(self.workload.threads):
            self._model.torn.refuse()
            fed = {"tokens": tokens, "targets": targets, **feeds}
            self._groups.watch.begin()
            count = self._groups.together("loss", lambda: self._feeds.take(fed), self._mark)
            loss = self._forward.loss() / count
            check_loss("loss", loss, self._model, self._forward, self._groups, DIVERGED)
            self._feeds.end()
            return loss

    def logits(self, tokens: ArrayLike | None = None, **feeds: ArrayLike) -> np.ndarray:
        """What the head's forward makes, without dropout: scores of every next token, an array of shape B T V.

        It is fed what forward reads; errors as `loss_and_grad`.
        """
        with self._turn(), kernels.Threads(self.workload.threads):
            self._model.torn.refuse()
            self._feeds.take_inputs({"tokens": tokens, **feeds})
            logits = self._forward.logits()
            self._feeds.end()
            return logits

    # a step

    def _train(self, feeds: dict, num_targets: int | None, run: Callable[[list[Call]], None]) -> float:
        threads = self.workload.threads
        with self._turn(), self._model.turn(), kernels.Threads(threads):
            self._refuse_others("loss_and_grad")
            self._model.torn.refuse()
            self._model.threads = threads
            self._updating.where = f"loss_and_grad, step {self._step}"
            self._take(feeds, num_targets)
            self._run("train", run)
            loss = self._check_loss()
            check_gradients(self._updating.where, self._model)
            self._feeds.end()
            self._step += 1
            return loss

    def _whole_step(self, feeds: dict) -> float:
        updating = self._updating
        updating.where = f"train_step, step {self._step}"
        self._take(feeds, None)
        self._zero_gradients()
        try:
            if self.plan.update_in_backward and updating.needs_norm_first:
                updating.measuring = True
                self._run("step", kernels.call_each)
                updating.measured()
            self._run("step", kernels.call_each)
        except BaseException as error:
            broken = updating.broken_off(error)
            if broken is error:
                raise
            raise broken from error
        updating.finish()
        self._feeds.end()
        loss = self._loss_sum / self._divisor
        self._zero_gradients()
        self._step += 1
        return loss

    def _take(self, feeds: dict, num_targets: int | None) -> None:
        """Check and copy a batch, and make all ready for a step."""
        self._groups.watch.begin()
        self._divisor = self._groups.together("step", lambda: self._feeds.take(feeds, num_targets), self._mark)
        if self._spill is not None:
            self._spill.begin()
        self._slab.mark()
        self._feeds.key(self._seed, self._step)

    def _mark(self) -> dict:
        """What is the same in all processes that share a step: at first all that they were made with, and then their step."""
        step = {"step": self._step, "batch": self._feeds.digest(), **self._updating.mark()}
        if self._marked:
            return step
        self._marked = True
        work = self.workload
        return {"version": VERSION, "kernels fuse": arithmetic()["fuses"], "model": self.program.digest,
                "weights": digest_of(self._model.parameters), "batch_size": work.batch, "seq_len": work.time,
                "dtype": work.dtype, "groups": work.groups, "plan": str(self.plan.to_dict()), "seed": self._seed, **step}

    def _run(self, mode: str, run: Callable[[list[Call]], None]) -> None:
        """Run a schedule over all micro-batches of this process's groups."""
        sections, sums = self._schedule(mode).sections, []
        try:
            for number, group in enumerate(self._groups.own):
                self._feeds.begin(group)
                self._updating.group = number
                for start, size in self._feeds.cuts():
                    self._feeds.place(start, size)
                    prologue, body, epilogue, finale = sections(self._bound(size, mode))
                    self._check.begin(self._step, group * self.workload.group.batch + start)
                    if not start:
                        run(prologue)
                    run(body)
                run(epilogue)
                sums.append(float(self._feeds.part["loss"][0]))
            self._loss_sum = self._groups.total(sums)
            run(finale)
        finally:
            for file in (self._spill, *(self._updating.files() if mode == "step" else ())):
                if file is not None:
                    file.settle()

    def _check_loss(self) -> float:
        if self.workload.groups == 1:  # it is asked for in the middle of a group
            self._loss_sum = float(self._feeds.part["loss"][0])
        loss = self._loss_sum / self._divisor
        check_loss(self._updating.where, loss, self._model, self._forward, self._groups)
        return loss

    def _zero_gradients(self) -> None:
        """Those that are no room in the arena; where all are, none is made for it."""
        if self._model.has_gradients or not (self.plan.update_in_backward or self._groups.shared):
            kernels.fill_zero(x=self._model.gradient_list)

    def _refuse_others(self, call: str) -> None:
        """Refuse a model that trains nothing, or other parameters than when this executor was made."""
        refuse_untrained(call, self._model.program)
        if self._model.revision != self._revision:
            raise ConfigError(call, "must be of an executor that was made for what the model trains now",
                              "one from before model.trainable was set", "Make the executor again.")

    def _refuse_if_updating(self, call: str) -> None:
        if self.plan.update_in_backward:
            raise PlanError(f"Executor.{call}", "needs a plan that keeps gradients", "one that updates in backward",
                            "Call train_step, or plan without update_in_backward.")

    def _schedule(self, mode: str) -> Schedule:
        """Of loss and gradients ("train") or a whole step. What one has more than the other are windows, the last of the
        buffers: both have their places in one arena."""
        if mode not in self._schedules:
            self._schedules[mode] = build_schedule(self.program, self.workload, self.plan, mode)
        return self._schedules[mode]

    def _bound(self, size: int, mode: str = "train") -> list[Call]:
        """The calls of a schedule for micro-batches of `size` sequences, made at first use."""
        if (mode, size) not in self._calls:
            schedule = self._schedule(mode)
            rows = {"R": schedule.loss_rows}
            gradients = {} if self.plan.update_in_backward or self.workload.groups > 1 else self._model.gradients
            binder = Binder(schedule, self.memory.arena, self._slab.bytes, self.workload.letters(size) | rows,
                            self.workload.group.letters() | rows, self._model.parameters, self._model.tables, gradients,
                            self._feeds.of(size), self._feeds.whole, self._spill, self._updating)
            calls = self._check.wrap([binder.call(op) for op in schedule.ops], schedule, binder)
            self._calls[mode, size] = binder.poisoned(calls) if DEBUG else calls
        return self._calls[mode, size]

    def _open_spill(self) -> SpillFile | None:
        letters = self.workload.letters(self.schedule.micro_batch)
        sizes = {b.index: elements(b.shape, letters) * ITEMSIZES[b.dtype] for b in self.schedule.buffers if b.kind == "disk"}
        return SpillFile(self.plan.spill_directory, sizes) if sizes else None
