"""Seconds of operations: as measured on this machine where it was, else from declared work.

An operation's *signature* is its kind, its layer's class, the fields of the layer that matter to cost, and every length
that matters. A measured signature costs what was measured. Another of the same kind and class costs its declared work times
the ratio of measured to declared of the nearest measured one; without any, its declared work at the default speeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

from cllm.locate import module_of
from cllm.planner.store import load_measured
from cllm.program import kinds
from cllm.program.dims import elements
from cllm.program.kinds import Kind
from cllm.program.layer import Layer
from cllm.program.parts import Step
from cllm.program.program import Program, plain
from cllm.program.workload import Workload
from cllm.schedule.operations import ITEMSIZES, Op, Schedule
from cllm.schedule.report import gradient_bytes, optimizer_bytes

# Round figures of a recent server core, for when nothing was measured: arithmetic per thread, memory and disk in all.
FLOPS_PER_SECOND = 75e9
BYTES_PER_SECOND = 12e9
DISK_BYTES_PER_SECOND = 1e9
MESSAGE_BYTES_PER_SECOND = 2e9  # between processes of one machine
SECONDS_PER_CALL = 5e-6


WAITS = {Kind.SPILL_WAIT: Kind.SPILL_START, Kind.FETCH_WAIT: Kind.FETCH_START, Kind.LOAD_WAIT: Kind.LOAD_START,
         Kind.STORE_WAIT: Kind.STORE_START}
STARTS = frozenset(WAITS.values())
UPDATE = "update"  # name under which seconds per parameter byte of zeroing, scan, clipping and optimizer are stored
DISK = "disk"  # seconds per byte written or read
MESSAGE = "message"  # seconds per byte sent to another process while as much comes
MOST_DECLARED = 50_000  # seconds of declared work that are remembered from plan to plan, by itemsize
_DECLARED: dict[int, dict[tuple, float]] = {}


@dataclass(slots=True)
class Speeds:
    """What a machine is known to do: measured seconds by signature, empty where nothing was measured.

    Those in `loaded` were measured while the machine was busy: they stand for themselves, and for others only where nothing
    better is known. `source` says in words what seconds rest on.
    """

    measured: dict[str, float] = field(default_factory=dict)
    loaded: frozenset[str] = frozenset()
    source: str = "declared work"
    _ratios: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
    _known: dict[tuple, float] = field(default_factory=dict)

    @staticmethod
    def stored(workload: Workload) -> "Speeds":
        """The speeds stored for this machine, build, dtype and number of threads."""
        found = load_measured(workload.threads, workload.dtype)
        known = {} if found.seconds else _DECLARED.setdefault(workload.itemsize, {})
        if len(known) > MOST_DECLARED:
            known.clear()
        return Speeds(dict(found.seconds), found.loaded, found.source, _known=known)

    def op_seconds(self, op: Op, schedule: Schedule, workload: Workload, micro_batch: int | None = None) -> float:
        """Seconds of one operation on a micro-batch, of the schedule's size or of another; waits for the disk are reckoned by
        `schedule_seconds`."""
        kind = op.kind.costs_as
        if kind in kinds.DISK or kind.once:  # what is done to parameters is reckoned as a whole, `update_seconds`
            return SECONDS_PER_CALL
        size = micro_batch or schedule.micro_batch
        nbytes = _moved_bytes(op, schedule, workload, size)
        sequences = workload.batch if op.whole else size
        step = op.step
        key = (kind, step.layer, step.spared, step.rows, sequences, workload.time, schedule.loss_rows, nbytes,
               workload.threads)
        if key not in self._known:
            self._known[key] = self._estimate(kind, step, _letters(op, schedule, workload, size), nbytes, workload)
        return self._known[key]

    def update_seconds(self, program: Program, workload: Workload) -> float:
        """Seconds of zeroing, scanning, clipping and the optimizer."""
        if workload.optimizer == "none":
            return 0.0
        share = gradient_bytes(program, workload) / workload.processes
        passes = 8 + 1.5 * optimizer_bytes(program, workload) / max(1, share)
        return share * self.measured.get(f"{UPDATE} {workload.optimizer}", passes / BYTES_PER_SECOND)

    def reduction_seconds(self, program: Program, workload: Workload) -> float:
        """Seconds of adding the gradients of groups, and of messages: of R processes each sends R - 1 parts of R of the
        gradients, and as much of the parameters."""
        if workload.groups == 1:
            return 0.0
        nbytes = gradient_bytes(program, workload)
        seconds = 3 * workload.own_groups * nbytes / BYTES_PER_SECOND
        others = workload.processes - 1
        return seconds + 2 * others / workload.processes * nbytes * self.measured.get(MESSAGE, 1 / MESSAGE_BYTES_PER_SECOND)

    def _estimate(self, kind: Kind, step: Step, letters, nbytes: int, workload: Workload) -> float:
        exact = self.measured.get(signature(kind, step, letters, nbytes))
        if exact is not None:
            return exact
        alone = declared_seconds(kind, step, letters, nbytes, None)
        ratio = self._nearest(kind, _class_name(step.layer), alone)
        return declared_seconds(kind, step, letters, nbytes, workload) if ratio is None else alone * ratio

    def _nearest(self, kind: str, layer: str, declared: float) -> float | None:
        """Measured over declared seconds of the measured operation of that kind whose declared work is nearest."""
        if not self._ratios:
            for loaded in (False, True):  # of a busy machine only what is not known any better
                better = frozenset(self._ratios) if loaded else frozenset()
                for name, seconds in self.measured.items():
                    parts = name.split("|")  # what stands between may hold the sign, too
                    if len(parts) > 3 and (name in self.loaded) == loaded and (parts[0], parts[1]) not in better:
                        work = float(parts[-1])
                        self._ratios.setdefault((parts[0], parts[1]), []).append((work, seconds / work))
        known = self._ratios.get((kind, layer))
        if not known:
            return None
        return min(known, key=lambda pair: abs(log(pair[0] / declared)))[1]


def signature(kind: Kind, step: Step, letters, nbytes: int) -> str:
    """The name of an operation's cost: kind, class and fields of the layer, lengths, and its declared seconds on one thread."""
    # the number of loss rows matters to a head alone
    batch = "BRT" if step.layer.evaluate_flow.exists else "BT"
    lengths = ",".join(f"{n}{letters[n]}" for n in batch if n in letters)
    fields = ",".join(f"{name}={plain(value)!r}" for name, value in step.layer.cost_fields)
    work = declared_seconds(kind, step, letters, nbytes, None)
    spared = "".join(f",no {name}" for name in sorted(_spared(kind, step)))
    return f"{kind}|{_class_name(step.layer)}|{fields}{spared};{lengths},{nbytes}|{work:.6e}"


def _class_name(layer: Layer) -> str:
    """Module and name of a layer's class: two of one name are two."""
    return f"{module_of(type(layer))}.{type(layer).__qualname__}"


def declared_seconds(kind: Kind, step: Step, letters, nbytes: int, workload: Workload | None) -> float:
    """Seconds from declared work: the larger of arithmetic and memory traffic, then what is read again, and the call.

    Weights that are read again for every run of rows are packed again: that is not hidden behind the arithmetic.
    """
    flops, nbytes = declared_work(kind, step, letters, nbytes)
    again = step.layer.extra_bytes(kind.work, letters) if kind.work else 0.0
    threads = workload.threads if workload else 1
    width = workload.itemsize / 4 if workload else 1
    once = max(flops / (FLOPS_PER_SECOND * threads) * width, (nbytes - again) / BYTES_PER_SECOND)
    return once + again / BYTES_PER_SECOND + SECONDS_PER_CALL


def declared_work(kind: Kind, step: Step, letters, nbytes: int, itemsize: int = 4) -> tuple[float, float]:
    """Floating-point operations and bytes moved of an operation that reads and writes buffers of `nbytes` in all."""
    layer = step.layer
    weights = sum(elements(p.shape, letters) for p in layer.params if layer.has(p)) * itemsize
    nbytes += weights * (2 if kind == Kind.ACCUMULATE else 1)
    if kind.work is None:
        return 0.0, nbytes
    flops = getattr(layer, f"{kind.work}_flops")(letters)
    flops -= sum(layer.spared_flops(name, letters) for name in _spared(kind, step))
    return flops, nbytes + layer.extra_bytes(kind.work, letters)


def _spared(kind: Kind, step: Step) -> frozenset[str]:
    """Gradients that an operation leaves out of those that its method makes."""
    if kind not in (Kind.ACCUMULATE, Kind.BACKWARD):
        return frozenset()
    return step.spared & set(getattr(step.layer, f"{kind.method}_flow").writes)


def micro_batch_counts(schedule: Schedule, workload: Workload) -> tuple[tuple[int, int], ...]:
    """(size, how many) of a step's micro-batches: the last is smaller where the size does not divide the batch."""
    whole, rest = divmod(workload.batch, schedule.micro_batch)
    return ((schedule.micro_batch, whole), (rest, 1)) if rest else ((schedule.micro_batch, whole),)


def op_step_seconds(op: Op, schedule: Schedule, workload: Workload, speeds: Speeds) -> float:
    """Seconds that an operation takes in one step: over all micro-batches, or once where it is of the whole batch."""
    if op.whole:
        return speeds.op_seconds(op, schedule, workload)
    return sum(count * speeds.op_seconds(op, schedule, workload, size)
               for size, count in micro_batch_counts(schedule, workload))


def schedule_seconds(schedule: Schedule, program: Program, workload: Workload, speeds: Speeds) -> float:
    """Seconds of one step over the whole batch, the optimizer's included.

    The disk works beside the kernels, one transfer after another; a wait costs what is left of its transfer. Where
    parameters are updated in backward and the norm of all gradients is to be known before, all but the updates runs twice.
    """
    disk_second = speeds.measured.get(DISK, 1 / DISK_BYTES_PER_SECOND)

    done: dict[tuple[Kind, int], float] = {}  # when the transfers of a start's kind and buffer end
    disk_free = 0.0

    def run(ops: Sequence[Op], size: int) -> float:
        """Seconds of operations; the times of transfers are left as those after them see them."""
        nonlocal disk_free
        now = 0.0
        for op in ops:
            if op.kind in STARTS:
                moved, known = _transfer(op, schedule)
                disk_free = max(disk_free, now) + moved * (1 if op.kind.once else size / schedule.micro_batch) * disk_second
                done[op.kind, known] = disk_free
            elif op.kind in WAITS:
                now = max(now, done[WAITS[op.kind], _transfer(op, schedule)[1]])
            now += speeds.op_seconds(op, schedule, workload, size)
        disk_free -= now
        for key in done:
            done[key] -= now
        return now

    whole, workload = workload, workload.group
    prologue, body, epilogue, finale = schedule.sections(schedule.ops)
    seconds = speeds.update_seconds(program, whole) + speeds.reduction_seconds(program, whole)
    if schedule.updates_in_backward and workload.clip_by == "all":
        seconds += run(tuple(op for op in body if op.kind not in kinds.STATES), schedule.micro_batch)
    group = run(prologue, schedule.micro_batch)
    group += sum(count * run(body, size) for size, count in micro_batch_counts(schedule, workload))
    group += run(epilogue, schedule.micro_batch)
    return seconds + schedule.n_groups * group + run(finale, schedule.micro_batch)


def _transfer(op: Op, schedule: Schedule) -> tuple[int, int]:
    """Bytes of an operation on the disk, and the buffer by which its start and its wait know each other."""
    if op.kind in kinds.STATES:
        (_, window), = op.reads or op.writes
        return schedule.buffers[window].nbytes, window
    source, target = dict(op.reads)["src"], dict(op.writes)["dst"]
    spills = op.kind in (Kind.SPILL_START, Kind.SPILL_WAIT)
    return schedule.buffers[source if spills else target].nbytes, target


def op_work(op: Op, schedule: Schedule, workload: Workload, micro_batch: int) -> tuple[float, float]:
    """Floating-point operations and bytes moved, as declared, of an operation on a micro-batch of that size."""
    batch = {**workload.letters(None if op.whole else micro_batch), "R": schedule.loss_rows}
    letters = op.step.letters(batch)
    buffers = [schedule.buffers[b] for _, b in (*op.reads, *op.writes)]
    nbytes = sum(elements(b.shape, batch) * ITEMSIZES[b.dtype] for b in buffers if b.kind not in ("scratch", "weights"))
    return declared_work(op.kind.costs_as, op.step, letters, nbytes, workload.itemsize)


def op_signature(op: Op, schedule: Schedule, workload: Workload) -> str:
    """The signature of an operation of a schedule."""
    kind = op.kind.costs_as
    size = schedule.micro_batch
    return signature(kind, op.step, _letters(op, schedule, workload, size), _moved_bytes(op, schedule, workload, size))


def _letters(op: Op, schedule: Schedule, workload: Workload, size: int) -> dict[str, int]:
    return op.step.letters({**workload.letters(None if op.whole else size), "R": schedule.loss_rows})


def _moved_bytes(op: Op, schedule: Schedule, workload: Workload, size: int) -> int:
    """Bytes of what an operation reads and writes on a micro-batch of `size`; of buffers of more, it moves its part."""
    buffers = [schedule.buffers[b] for _, b in (*op.reads, *op.writes)]
    sequences = workload.batch if op.whole else size
    return sum(b.nbytes * sequences // (workload.batch if b.whole else schedule.micro_batch)
               for b in buffers if b.kind not in ("scratch", "weights"))
