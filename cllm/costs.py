"""Seconds of operations from declared work: floating-point operations and bytes moved."""

from dataclasses import dataclass

from cllm.dims import elements
from cllm.schedule import Op, Schedule
from cllm.workload import Workload


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a machine is thought to be: per thread for arithmetic, in all for memory.

    The defaults are round figures of a recent server core; a calibration of the machine at hand replaces them.
    """

    flops_per_second: float = 75e9
    bytes_per_second: float = 12e9
    seconds_per_call: float = 5e-6


def op_seconds(op: Op, schedule: Schedule, workload: Workload, rates: Rates) -> float:
    """Seconds of one operation: the larger of its arithmetic and its memory traffic, and the call."""
    letters = {**workload.letters(None if op.whole else schedule.micro_batch), "R": schedule.loss_rows,
               **op.step.layer.letters}
    if op.kind in ("spill_start", "spill_wait", "fetch_start", "fetch_wait"):
        return rates.seconds_per_call
    nbytes = sum(schedule.buffers[b].nbytes for _, b in (*op.reads, *op.writes) if schedule.buffers[b].kind != "scratch")
    flops = 0.0
    layer = op.step.layer
    if op.kind in ("forward", "rebuild", "evaluate", "logits"):
        flops = layer.forward_flops(letters)
    elif op.kind in ("accumulate", "backward"):
        flops = getattr(layer, op.kind + "_flops")(letters)
    weights = sum(elements(p.shape, letters) for p in layer.params if layer.has_param(p)) * workload.itemsize
    nbytes += weights * (2 if op.kind == "accumulate" else 1)
    arithmetic = flops / (rates.flops_per_second * workload.threads) * (workload.itemsize / 4)
    return max(arithmetic, nbytes / rates.bytes_per_second) + rates.seconds_per_call


def schedule_seconds(schedule: Schedule, workload: Workload, rates: Rates) -> float:
    """Seconds of one step over the whole batch."""
    seconds = [op_seconds(op, schedule, workload, rates) for op in schedule.ops]
    return sum(seconds[:schedule.epilogue]) * (workload.batch / schedule.micro_batch) + sum(seconds[schedule.epilogue:])
