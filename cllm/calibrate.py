"""A short calibration of this machine: seconds of every operation of a workload, stored for plans to come."""

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from cllm import _kernels as kernels
from cllm.executor.executor import Executor
from cllm.locate import module_of
from cllm.models.architecture import Architecture
from cllm.models.excerpt import Excerpt
from cllm.models.model import Model
from cllm.optim import AdamW, clip_grad_norm
from cllm.planner.costs import DISK, UPDATE, op_signature
from cllm.planner.disks import usual_directory
from cllm.planner.ledger import Ledger
from cllm.planner.load import is_loaded, load_average, load_in_words
from cllm.planner.store import check_store, load_measured, save_measurements
from cllm.planning import decide
from cllm.program.program import plain
from cllm.program.workload import Workload
from cllm.schedule.compression import PACKED
from cllm.strategies import BY_SECONDS, Compressed, RecomputeAll, parse

DISAGREE = 1.25  # times as long as the quickest round: such a round was disturbed, and has no part in the pace
MOST_SECONDS = 20.0  # that a calibration should take; what it then has not measured is estimated from what it has
LAYERS = 1  # of each kind, in the model that is measured: blocks of a kind cost the same, and short steps make many rounds
ROUNDS = 8  # in each of them every size of micro-batch has its turn, so that a slow phase of the machine meets them all
TURN_SECONDS = 0.15  # of timed steps in a turn; one step at least
UPDATES = 6  # timed updates by the optimizer
DISK_PROBE_BYTES = 64 << 20


def is_calibrated(architecture: Architecture, workload: Workload) -> bool:
    """Whether this machine was measured for this workload of this model; what was measured while it had more to do than cores
    counts only as long as it still has."""
    stored, mark = load_measured(workload.threads, workload.dtype), _mark(architecture, workload)
    made = stored.made.get(mark, {})
    return mark in stored.seconds and (not is_loaded(made.get("load")) or is_loaded(load_average()))


def source_of_seconds(architecture: Architecture, workload: Workload) -> str:
    """What the predicted seconds of a workload of a model rest on, in words."""
    stored = load_measured(workload.threads, workload.dtype)
    if not stored.seconds:
        return "declared work, at the speeds of a server core: nothing was measured on this machine"
    made = stored.made.get(_mark(architecture, workload))
    if made is None:
        return f"{stored.source} on this machine for other models or batches, and scaled by declared work"
    return f"measured on this machine on {made['date']}{_doubt(made)}"


def _doubt(made: dict) -> str:
    """Why a calibration is not to be believed; empty where it is."""
    if is_loaded(made["load"]):
        return f", under {load_in_words(made['load'])}: measure again when it is quiet (cllm plan --calibrate)"
    if made["loaded"]:
        return (f", when its rounds took from 1 to {made['spread']:.1f} times as long: measure again when it is quiet "
                "(cllm plan --calibrate)")
    return ""


def wants_seconds(strategy: object) -> bool:
    """Whether a strategy, or its name, decides by predicted seconds."""
    return isinstance(parse(strategy) if isinstance(strategy, str) else strategy, BY_SECONDS)


def calibrate_where_wanted(architecture: Architecture, workload: Workload, strategies: Iterable[object],
                           tell: Callable[[str], None] = lambda text: None, limit: int | None = None,
                           always: bool = False) -> None:
    """Calibrate for the workload, should a strategy (or the caller, `always`) decide by seconds and nothing be stored.

    `tell` hears of it, and of measurements that cannot be kept, without which declared work decides. `limit` is that of
    `calibrate`.
    """
    if (always or any(wants_seconds(s) for s in strategies)) and not is_calibrated(architecture, workload):
        tell("measuring this machine once for this model and batch")
        try:
            calibrate(architecture, workload, lambda text: tell(f"  {text}"), limit)
        except OSError as error:
            tell(f"measurements cannot be kept, so declared work decides: {error}")


def calibrate(architecture: Architecture, workload: Workload, tell: Callable[[str], None] = lambda text: None,
              limit: int | None = None) -> Path:
    """Measure a workload's operations and store what each adds to a step.

    Sizes of micro-batch from one sequence up, each twice the one before, take a few steps in turn with block inputs only:
    such a step runs every operation that a plan may run, in the order and with the buffers of a real one. One sequence is
    run as half of a batch of two, which also puts gradients aside for the epilogue. Compressed copies are measured at one
    sequence: their seconds grow with their bytes. Random tokens serve as well as text.

    What else a machine does only ever adds seconds, and not in the same moment to all. So of each operation the first quartile
    is taken, by which operations and sizes compare; and all of them times one pace, the median of whole steps over the sum of
    their operations, which is the machine's as it was. Rounds that were disturbed have no part in the pace, and more are taken
    where they disagree. What is stored has the date, the load of the machine, and whether it was too busy for the figures to be
    believed beyond their own workload.

    Parameters
    ----------
    architecture : Architecture
        Or `models.excerpt.Used`: as it is trained and computes.
    workload : Workload
    tell : callable
        Hears what is being measured.
    limit : int or None
        Sizes whose step needs more bytes in total than this are left out.

    Returns
    -------
    Path
        The file of measurements.

    Raises
    ------
    OSError
        When measurements cannot be kept; where that is known beforehand, nothing is measured.
    """
    check_store(workload.threads, workload.dtype)
    workload = replace(workload, groups=1, processes=1)  # which run the same operations
    load, began = load_average(), perf_counter()
    if is_loaded(load):
        tell(f"the machine has {load_in_words(load)}: what is measured now is marked, and measured again when it is quiet")
    model = Excerpt.of(architecture, LAYERS).model(workload.dtype)
    sizes: list[_Steps] = []
    for size in _sizes(workload.batch):
        part = replace(workload, batch=min(2, workload.batch) if size == 1 else size)
        if size > 1 and perf_counter() - began > MOST_SECONDS / 3:  # the next takes twice as long as the last
            tell(f"micro-batches of {size} and more are estimated")
            break
        if size > 1 and limit is not None and decide(RecomputeAll(), Ledger(model.program, part)).total_bytes > limit:
            break
        tell(f"micro-batch of {size}")
        sizes.append(_Steps(part, RecomputeAll(micro_batch=size)))
        sizes[-1].turn(model, warm=True)
    compressed = [_Steps(sizes[0].workload, Compressed(dtype, micro_batch=1)) for dtype in PACKED]
    for number in range(1, 2 * ROUNDS):
        if perf_counter() - began > MOST_SECONDS / 2 or number >= ROUNDS and not _disagree(sizes):
            break
        tell(f"round {number + 1} of {ROUNDS}" if number < ROUNDS else "another round: those before disagree")
        for steps in sizes:
            steps.turn(model)
    tell("compressed copies")
    for steps in compressed:
        steps.turn(model, warm=True)
    seconds: dict[str, float] = {}
    for steps in reversed(sizes + compressed):  # what several measured is told by the first
        seconds |= steps.quick()
    pace = median(one for steps in sizes for one in steps.paces())
    seconds = {name: pace * quick for name, quick in seconds.items()}
    tell("optimizer")
    if workload.optimizer == "adamw":  # the others are reckoned by the bytes they move
        seconds[f"{UPDATE} adamw"] = _measure_update(model)
    tell("disk")
    disk = _measure_disk()
    if disk is not None:
        seconds[DISK] = disk
    mark = _mark(architecture, workload)
    loaded = is_loaded(load) or _disagree(sizes)
    made = {"date": date.today().isoformat(), "load": load, "spread": max(steps.spread for steps in sizes), "loaded": loaded}
    return save_measurements(workload.threads, workload.dtype, {**seconds, mark: 0.0}, {mark: made}, loaded)


def _disagree(sizes: "list[_Steps]") -> bool:
    """Whether some size has fewer than two rounds of its pace that were not disturbed."""
    return any(len(steps.turns) > 1 and len(steps.quiet_turns) < 2 for steps in sizes)


def _sizes(batch: int) -> list[int]:
    """Sizes of micro-batch to measure: powers of two below the batch, and the batch."""
    return [*(2 ** k for k in range(batch.bit_length()) if 2 ** k < batch), batch]


def _mark(architecture: Architecture, workload: Workload) -> str:
    """The name under which it is stored that a workload was measured: kinds of layers, what of them is frozen, and sizes, not
    the number of blocks."""
    steps = Excerpt.of(architecture, 1).program.steps
    kinds = [[module_of(type(s.layer)), type(s.layer).__qualname__, plain(s.layer.cost_fields),
              *([sorted(s.frozen), sorted(s.unwanted)] if s.frozen or s.unwanted else [])] for s in steps]
    digest = hashlib.sha256(json.dumps(kinds).encode()).hexdigest()[:16]
    return f"done {digest};{workload.batch}x{workload.time}"


@dataclass
class _Steps:
    """Timed steps of a plan: seconds of each operation, by signature, and of every step; or turns, each of them such steps."""

    workload: Workload
    strategy: object
    found: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    names: list[str] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    turns: "list[_Steps]" = field(default_factory=list)

    def turn(self, model: Model, warm: bool = False) -> None:
        """Timed steps; `warm` takes one before that is not. Later turns need none: what a step finds in the caches is not from
        the step before in training either, and more rounds tell more than warm ones."""
        work = self.workload
        executor = Executor(model, work.batch, work.time, strategy=self.strategy, optimizer=work.optimizer,
                            num_threads=work.threads)
        schedule = executor.schedule
        self.names = [op_signature(op, schedule, work) for op in schedule.whole_step(schedule.ops)]
        feeds = model.architecture.whole.whole.example_batch(np.random.default_rng(0), work.batch, work.time)
        if warm:
            model.zero_grad()
            executor.loss_and_grad(**feeds)
        now, spent = _Steps(work, self.strategy, names=self.names), 0.0
        while spent < TURN_SECONDS:
            model.zero_grad()
            timed = executor.timed_step(**feeds).tolist()
            for name, seconds in zip(self.names, timed, strict=True):
                now.found[name].append(seconds)
            now.totals.append(sum(timed))
            spent += now.totals[-1]
        self.turns.append(now)

    @property
    def spread(self) -> float:
        """The slowest turn's median step over the quickest's."""
        medians = [median(turn.totals) for turn in self.turns]
        return max(medians) / min(medians)

    @property
    def quiet_turns(self) -> "list[_Steps]":
        """Turns within `DISAGREE` of the quickest."""
        least = min(median(turn.totals) for turn in self.turns)
        return [turn for turn in self.turns if median(turn.totals) <= DISAGREE * least]

    def quick(self) -> dict[str, float]:
        """The first quartile of each operation's seconds: of few samples and of many, it is equally near to the least."""
        found = defaultdict(list)
        for turn in self.turns:
            for name, samples in turn.found.items():
                found[name] += samples
        return {name: float(np.quantile(samples, 0.25)) for name, samples in found.items()}

    def paces(self) -> list[float]:
        """Of each round that was not disturbed, the median step over what it were if all its operations were quick."""
        quick = self.quick()
        together = sum(quick[name] for name in self.names)
        return [median(turn.totals) / together for turn in self.quiet_turns]


def _measure_update(model: Model) -> float:
    """Seconds per byte of parameters of what a step does beside its operations: zero, look for NaN, clip, update."""
    optimizer = AdamW(model)
    samples = []
    for _ in range(1 + UPDATES):
        began = perf_counter()
        model.zero_grad()
        with model.changed():
            kernels.nonfinite_arrays(model.gradient_list)
        clip_grad_norm(model, 1.0)
        optimizer.step()
        samples.append(perf_counter() - began)
    return median(samples[1:]) / sum(model.parameters[name].nbytes for name in model.program.trained)


def _measure_disk() -> float | None:
    """Seconds per byte of writing and reading a file where what is put on disk goes, to the disk and from it, not to the
    system's cache of files; None where there is no room."""
    data = np.random.default_rng(0).bytes(DISK_PROBE_BYTES)
    try:
        with tempfile.TemporaryFile(buffering=0, dir=usual_directory()) as file:
            began = perf_counter()
            moved = [os.pwrite(file.fileno(), data, 0)]
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # what is clean is dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            moved.append(len(os.pread(file.fileno(), DISK_PROBE_BYTES, 0)))
            seconds = perf_counter() - began
    except OSError:
        return None
    return seconds / sum(moved) if moved == [DISK_PROBE_BYTES, DISK_PROBE_BYTES] else None
