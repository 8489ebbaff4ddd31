"""A short calibration of this machine: seconds of every operation of a workload, stored for plans to come."""

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from cllm.costs import DISK, UPDATE, op_signature
from cllm.executor import Executor
from cllm.frontier import micro_batches
from cllm.measurements import load_measurements, save_measurements
from cllm.models.gpt import GPT
from cllm.optim import AdamW, clip_grad_norm
from cllm.strategies import Compressed, RecomputeAll
from cllm.workload import Workload

ROUNDS = 3  # timed steps of each size of micro-batch, after one that warms up
DISK_PROBE_BYTES = 64 << 20


def is_calibrated(workload: Workload) -> bool:
    """Whether every size of micro-batch of this workload was measured."""
    known = load_measurements(workload.threads, workload.dtype)
    return all(_mark(replace(workload, batch=size)) in known for size in micro_batches(workload.batch))


def calibrate(workload: Workload, tell: Callable[[str], None] = lambda text: None) -> Path:
    """Measure a workload's operations and store their medians.

    Each size of micro-batch is run for a few steps with block inputs only, which runs every operation that any plan may
    run; random tokens serve as well as text.

    Parameters
    ----------
    workload : Workload
    tell : callable
        Hears what is being measured.

    Returns
    -------
    Path
        The file of measurements.
    """
    model = GPT(workload.config, dtype=workload.dtype)
    seconds: dict[str, float] = {}
    for size in micro_batches(workload.batch):
        tell(f"micro-batch of {size}")
        part = replace(workload, batch=size)
        for strategy in (RecomputeAll(), Compressed("bfloat16"), Compressed("int8")):
            found = _measure_ops(model, part, strategy, 1 if isinstance(strategy, Compressed) else ROUNDS)
            seconds = {**found, **seconds}
        seconds[_mark(part)] = 0.0
    tell("optimizer")
    seconds[f"{UPDATE} adamw"] = _measure_update(model)
    tell("disk")
    seconds[DISK] = _measure_disk()
    return save_measurements(workload.threads, workload.dtype, seconds)


def _mark(workload: Workload) -> str:
    config = ",".join(f"{value}" for name, value in workload.config.to_dict().items() if name != "n_layers")
    return f"done {config};{workload.batch}x{workload.time}"


def _measure_ops(model: GPT, workload: Workload, strategy, rounds: int) -> dict[str, float]:
    executor = Executor(model, workload.batch, workload.time, strategy=strategy, num_threads=workload.threads)
    generator = np.random.default_rng(0)
    tokens, targets = generator.integers(0, workload.config.vocab_size, (2, workload.batch, workload.time))
    found = defaultdict(list)
    for number in range(1 + rounds):
        model.zero_grad()
        timed = executor.timed_step(tokens, targets)
        if number:
            for op, (_, _, seconds) in zip(executor.schedule.ops, timed, strict=True):
                found[op_signature(op, executor.schedule, workload)].append(seconds)
    return {name: median(samples) for name, samples in found.items()}


def _measure_update(model: GPT) -> float:
    """Seconds per byte of parameters of what follows backward."""
    optimizer = AdamW(model)
    samples = []
    for _ in range(1 + ROUNDS):
        began = perf_counter()
        model.zero_grad()
        clip_grad_norm(model, 1.0)
        optimizer.step()
        samples.append(perf_counter() - began)
    return median(samples[1:]) / sum(p.nbytes for p in model.parameters.values())


def _measure_disk() -> float:
    """Seconds per byte of writing and reading a file in the directory for temporary files."""
    data = np.random.default_rng(0).bytes(DISK_PROBE_BYTES)
    with tempfile.TemporaryFile(buffering=0) as file:
        began = perf_counter()
        os.pwrite(file.fileno(), data, 0)
        os.pread(file.fileno(), DISK_PROBE_BYTES, 0)
        return (perf_counter() - began) / (2 * DISK_PROBE_BYTES)
