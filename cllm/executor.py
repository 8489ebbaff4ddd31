"""Interprets a schedule; names no strategy and no layer."""

from collections.abc import Callable
from operator import sub
from time import perf_counter

import numpy as np

from cllm import _kernels as kernels
from cllm._build_info import DEBUG
from cllm.arena import Arena, lay_out
from cllm.arrays import aligned_empty
from cllm.batches import checked_batch, checked_tokens
from cllm.binding import Binder
from cllm.config import LARGEST_SEED, checked_size
from cllm.declare import FEEDS
from cllm.dims import elements, resolve
from cllm.errors import ConfigError, NonFiniteError
from cllm.ledger import Ledger
from cllm.memory import MemoryReport
from cllm.models.gpt import GPT
from cllm.planning import decide
from cllm.plans import Plan
from cllm.rebuild_check import RebuildCheck
from cllm.schedule import ITEMSIZES, Schedule, build_schedule
from cllm.spilling import SpillFile
from cllm.witness import Slab
from cllm.workload import Workload

Call = Callable[[], None]


class Executor:
    """Runs training steps of a model under a strategy, in memory that is known before the first.

    Parameters
    ----------
    model : GPT
    batch_size, seq_len : int
        B and T of every call.
    strategy : strategy, Plan or name
    optimizer : str
        Whose state counts in ``memory.total_bytes``; stepping with one of larger state is refused.
    num_threads : int or None
        None takes all cores. Bits of results do not depend on it.
    seed : int
        Of the dropout masks.
    determinism_check : {"off", "sampled", "bits"}
        Compare rebuilt values with the originals, none, one in eight, or all.

    Raises
    ------
    ConfigError, PlanError, BudgetError
        Before any array is made.
    """

    def __init__(self, model: GPT, batch_size: int, seq_len: int, strategy="cache", optimizer: str = "adamw",
                 num_threads: int | None = None, seed: int = 0, determinism_check: str = "off"):
        if not isinstance(model, GPT):
            raise ConfigError("Executor(model)", "must be a cllm.GPT", type(model).__name__, "Make one with cllm.GPT(config).")
        self.workload = Workload(model.config, batch_size, seq_len, model.dtype, optimizer, num_threads)
        self._seed = checked_size("Executor(seed=...)", seed, 0, LARGEST_SEED)
        self._check = RebuildCheck.of(determinism_check)
        self._model = model
        self._ledger = Ledger(model.program, self.workload)
        self.plan: Plan = decide(strategy, self._ledger)
        if self._check.every and not self.plan.exact:
            raise ConfigError("Executor(determinism_check=...)", "must be 'off' where values are compressed",
                              repr(determinism_check), "What is rebuilt from a compressed value differs by design.")
        self.schedule: Schedule
        self.memory: MemoryReport
        self.schedule, self.memory = self._ledger.build(self.plan)
        self._step = 0
        self._slab = Slab(self.memory.arena_bytes)
        self._spill = self._open_spill()
        self._feeds = _make_feeds(self.workload.letters(self.schedule.micro_batch))
        self._whole = {**self._feeds, **{n: np.empty(resolve(FEEDS[n][0], self.workload.letters()), FEEDS[n][1])
                                         for n in ("tokens", "targets")}}
        self._calls: dict[tuple[str, int], list[Call]] = {}
        self._forward: dict[str, tuple[Schedule, Arena, np.ndarray]] = {}
        model.attach(self.workload.optimizer)

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

    def loss_and_grad(self, tokens, targets, num_targets: int | None = None) -> float:
        """Forward and backward over one batch.

        Parameters
        ----------
        tokens, targets : integer arrays of shape B T
            Targets of -1 are ignored.
        num_targets : int or None
            The divisor of the loss; None is the number of valid targets of this call.

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
        return self._train(tokens, targets, num_targets, self._run)

    def timed_step(self, tokens, targets) -> list[tuple[str, str, float]]:
        """`loss_and_grad`, with (kind, step name, seconds) of every operation in the order in which it ran.

        The clock is read once between two operations and names are looked up afterwards, so that the record costs a step
        next to nothing (`profiling/overhead.py` measures what).
        """
        moments: list[tuple[int, list[float]]] = []

        def run(calls: list[Call], schedule: Schedule, start: int) -> None:
            clock = perf_counter
            read = [clock()]
            moments.append((start, read))
            note = read.append
            for call in calls:
                call()
                note(clock())

        self._train(tokens, targets, None, run)
        kinds = [op.kind for op in self.schedule.ops]
        names = [op.step.name for op in self.schedule.ops]
        record: list[tuple[str, str, float]] = []
        for start, read in moments:  # zip and map end with the shortest: a body is followed by other operations
            record += zip(kinds[start:], names[start:], map(sub, read[1:], read), strict=False)
        return record

    def loss(self, tokens, targets) -> float:
        """Mean loss over the valid targets, without gradients, dropout or kept activations; errors as `loss_and_grad`."""
        count = self._take(tokens, targets, None)
        kernels.set_threads(self.workload.threads)
        self._feeds["loss"][0] = 0.0
        for start, size in self._micro_batches():
            self._feed(start, size)
            for call in self._bound("loss", size):
                call()
        loss = float(self._feeds["loss"][0]) / count
        if not np.isfinite(loss):
            self._refuse_nonfinite(f"loss, {self._first_nonfinite_value()}", f"loss {loss}")
        return loss

    def logits(self, tokens) -> np.ndarray:
        """Scores of every next token, an array of shape B T V, without dropout; errors as `loss_and_grad`."""
        self._whole["tokens"][...] = checked_tokens(self.workload, tokens)
        kernels.set_threads(self.workload.threads)
        letters = self.workload.letters()
        out = np.empty((letters["N"], letters["V"]), self.workload.dtype)
        for start, size in self._micro_batches():
            self._feed(start, size)
            *calls, head = self._bound("logits", size)
            for call in calls:
                call()
            first = start * letters["T"]
            head(logits=out[first:first + size * letters["T"]])
        return out.reshape(resolve("B T V", letters))

    # a step

    def _train(self, tokens, targets, num_targets: int | None, run) -> float:
        count = self._take(tokens, targets, num_targets)
        kernels.set_threads(self.workload.threads)
        self._slab.mark()
        self._feeds["scale"][0] = 1.0 / count
        self._feeds["loss"][0] = 0.0
        self._feeds["key"][:2] = self._seed, self._step
        try:
            for start, size in self._micro_batches():
                self._feed(start, size)
                calls = self._bound("train", size)
                self._check.begin(self._step, start)
                run(calls[:self.schedule.epilogue], self.schedule, 0)
            run(calls[self.schedule.epilogue:], self.schedule, self.schedule.epilogue)
        finally:
            if self._spill is not None:
                self._spill.settle()
        loss = float(self._feeds["loss"][0]) / count
        self._check_finite(loss)
        self._step += 1
        return loss

    @staticmethod
    def _run(calls: list[Call], schedule: Schedule, start: int) -> None:
        for call in calls:
            call()

    def _micro_batches(self):
        micro, batch = self.schedule.micro_batch, self.workload.batch
        return [(start, min(micro, batch - start)) for start in range(0, batch, micro)]

    def _take(self, tokens, targets, num_targets: int | None) -> int:
        """Check the batch, copy it to the feeds, and return the divisor of the loss."""
        tokens, targets, count = checked_batch(self.workload, tokens, targets, num_targets)
        self._whole["tokens"][...] = tokens
        self._whole["targets"][...] = targets
        return count

    def _feed(self, start: int, size: int) -> None:
        for name in ("tokens", "targets"):
            self._feeds[name][:size] = self._whole[name][start:start + size]
        self._feeds["key"][2] = start * self.workload.time

    # binding

    def _bound(self, mode: str, size: int) -> list[Call]:
        """The calls of a schedule for micro-batches of `size` sequences, made at first use."""
        if (mode, size) not in self._calls:
            if mode == "train":
                schedule, arena, slab = self.schedule, self.memory.arena, self._slab.bytes
            else:
                schedule, arena, slab = self._forward_only(mode)
            letters = {**self.workload.letters(size), "R": schedule.loss_rows}
            feeds = {name: array[:size] if name in ("tokens", "targets") else array for name, array in self._feeds.items()
                     if mode == "train" or name != "key"}
            whole_letters = {**self.workload.letters(), "R": schedule.loss_rows}
            binder = Binder(schedule, arena, slab, letters, whole_letters, self._model.parameters, self._model.tables,
                            self._model.gradients if mode == "train" else {}, feeds, self._whole, self._spill)
            calls = [binder.call(op) for op in schedule.ops]
            if mode == "train":
                calls = self._check.wrap(calls, schedule, binder)
                if DEBUG:
                    calls = binder.poisoned(calls)
            self._calls[mode, size] = calls
        return self._calls[mode, size]

    def _open_spill(self) -> SpillFile | None:
        letters = self.workload.letters(self.schedule.micro_batch)
        sizes = {b.index: elements(b.shape, letters) * ITEMSIZES[b.dtype] for b in self.schedule.buffers if b.kind == "disk"}
        return SpillFile(self.plan.spill_directory, sizes) if sizes else None

    def _forward_only(self, mode: str) -> tuple[Schedule, Arena, np.ndarray]:
        """A forward schedule in the slab of training, or in one of its own should that be too small."""
        if mode not in self._forward:
            schedule = build_schedule(self._model.program, self.workload, self.plan, mode)
            arena = lay_out(schedule)
            fits = arena.nbytes <= self.memory.arena_bytes
            self._forward[mode] = schedule, arena, self._slab.bytes if fits else aligned_empty(arena.nbytes, np.uint8)
        return self._forward[mode]

    # NaN and infinity

    def _check_finite(self, loss: float) -> None:
        where = f"loss_and_grad, step {self._step}"
        if not np.isfinite(loss):
            self._refuse_nonfinite(f"{where}, {self._first_nonfinite_value()}", f"loss {loss}")
        bad = kernels.nonfinite_arrays(self._model.gradient_list)
        if bad:
            name = list(self._model.gradients)[bad[-1]]
            self._refuse_nonfinite(f"{where}, gradient of {name}", "NaN or infinity, first in backward there")

    @staticmethod
    def _refuse_nonfinite(where: str, got: str) -> None:
        raise NonFiniteError(where, "must be finite", got,
                             "Call model.zero_grad() and skip the batch, or lower the learning rate.")

    def _first_nonfinite_value(self) -> str:
        """Run forward once more, value by value, and name the first that is not finite."""
        parameters = self._model.parameters
        bad = kernels.nonfinite_arrays(kernels.ArrayList(parameters.values()))
        if bad:
            return f"parameter {list(parameters)[bad[0]]}"
        schedule, arena, slab = self._forward_only("loss")
        for start, size in self._micro_batches():
            self._feed(start, size)
            calls = self._bound("loss", size)
            letters = {**self.workload.letters(size), "R": schedule.loss_rows}
            binder = Binder(schedule, arena, slab, letters, letters, {}, {}, {}, {}, {})
            for op, call in zip(schedule.ops, calls, strict=True):
                call()
                for _, b in op.writes:
                    buffer = schedule.buffers[b]
                    if buffer.kind != "scratch" and not np.isfinite(binder.array(buffer)).all():
                        return f"value {buffer.label}"
        return "loss"


def _make_feeds(letters) -> dict[str, np.ndarray]:
    return {name: np.zeros(resolve(shape, letters), dtype) for name, (shape, dtype) in FEEDS.items()}

