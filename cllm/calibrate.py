"""A short calibration of this machine: seconds of every operation of a workload, stored for plans to come."""

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import numpy as np

from cllm import _kernels as kernels
from cllm.compression import PACKED
from cllm.costs import DISK, UPDATE, op_signature
from cllm.executor import Executor
from cllm.ledger import Ledger
from cllm.measurements import load_measurements, save_measurements
from cllm.models.gpt import GPT
from cllm.optim import AdamW, clip_grad_norm
from cllm.planning import decide
from cllm.strategies import Compressed, MemoryBudget, RecomputeAll, parse
from cllm.workload import Workload

MOST_SECONDS = 20.0  # that a calibration should take; what it then has not measured is estimated from what it has
LAYERS = 3  # of the model that is measured: blocks of a kind cost the same, and three give each operation enough samples
LEAST_ROUNDS, MOST_ROUNDS = 2, 6  # timed steps of a size of micro-batch, after one that warms up
ROUND_SECONDS = 1.0  # after which a size has been timed long enough
DISK_PROBE_BYTES = 64 << 20


def is_calibrated(workload: Workload) -> bool:
    """Whether this machine was measured for this workload."""
    return _mark(workload) in load_measurements(workload.threads, workload.dtype)


def wants_seconds(strategy: object) -> bool:
    """Whether a strategy, or its name, decides by predicted seconds."""
    return isinstance(parse(strategy) if isinstance(strategy, str) else strategy, MemoryBudget)


def calibrate(workload: Workload, tell: Callable[[str], None] = lambda text: None, limit: int | None = None) -> Path:
    """Measure a workload's operations and store their means.

    Sizes of micro-batch from one sequence up, each twice the one before, are run for a few steps with block inputs only:
    such a step runs every operation that a plan may run, in the order and with the buffers of a real one. Compressed
    copies are measured at one sequence: their seconds grow with their bytes. Random tokens serve as well as text.

    Parameters
    ----------
    workload : Workload
    tell : callable
        Hears what is being measured.
    limit : int or None
        Sizes whose step needs more bytes in total than this are left out.

    Returns
    -------
    Path
        The file of measurements.
    """
    config = replace(workload.config, n_layers=min(LAYERS, workload.config.n_layers))
    began = perf_counter()
    model = GPT(config, dtype=workload.dtype)
    seconds: dict[str, float] = {}
    for size in _sizes(workload.batch):
        part = replace(workload, config=config, batch=size)
        if size > 1 and perf_counter() - began > MOST_SECONDS / 3:  # the next takes twice as long as the last
            tell(f"micro-batches of {size} and more are estimated")
            break
        if size > 1 and limit is not None and decide(RecomputeAll(), Ledger(model.program, part)).total_bytes > limit:
            break
        tell(f"micro-batch of {size}")
        seconds |= _measure_ops(model, part, RecomputeAll(), MOST_ROUNDS)
        if size == 1:
            tell("compressed copies")
            for dtype in PACKED:
                seconds = _measure_ops(model, part, Compressed(dtype), 1) | seconds
    tell("optimizer")
    if workload.optimizer == "adamw":  # the others are reckoned by the bytes they move
        seconds[f"{UPDATE} adamw"] = _measure_update(model)
    tell("disk")
    seconds[DISK] = _measure_disk()
    seconds[_mark(workload)] = 0.0
    return save_measurements(workload.threads, workload.dtype, seconds)


def _sizes(batch: int) -> list[int]:
    """Sizes of micro-batch to measure: powers of two below the batch, and the batch."""
    return [*(2 ** k for k in range(batch.bit_length()) if 2 ** k < batch), batch]


def _mark(workload: Workload) -> str:
    config = ",".join(f"{value}" for name, value in workload.config.to_dict().items() if name != "n_layers")
    return f"done {config};{workload.batch}x{workload.time}"


def _measure_ops(model: GPT, workload: Workload, strategy, most_rounds: int) -> dict[str, float]:
    executor = Executor(model, workload.batch, workload.time, strategy=strategy, optimizer=workload.optimizer,
                        num_threads=workload.threads)
    generator = np.random.default_rng(0)
    tokens, targets = generator.integers(0, workload.config.vocab_size, (2, workload.batch, workload.time))
    found = defaultdict(list)
    spent, rounds = 0.0, -1
    while rounds < min(LEAST_ROUNDS, most_rounds) or (rounds < most_rounds and spent < ROUND_SECONDS):
        model.zero_grad()
        timed = executor.timed_step(tokens, targets)
        rounds += 1
        if rounds:
            for op, (_, _, seconds) in zip(executor.schedule.ops, timed, strict=True):
                found[op_signature(op, executor.schedule, workload)].append(seconds)
                spent += seconds
    return {name: _typical(samples) for name, samples in found.items()}


def _typical(samples: list[float]) -> float:
    """The mean, where no sample counts for more than three medians: what an operation adds to a step. (Medians of skewed
    samples, summed, fall short of the step by some percent.)"""
    most = 3 * median(samples)
    return fmean(min(sample, most) for sample in samples)


def _measure_update(model: GPT) -> float:
    """Seconds per byte of parameters of what a step does beside its operations: zero, look for NaN, clip, update."""
    optimizer = AdamW(model)
    samples = []
    for _ in range(1 + MOST_ROUNDS):
        began = perf_counter()
        model.zero_grad()
        for gradient in model.gradients.values():
            kernels.first_nonfinite(gradient.reshape(-1))
        clip_grad_norm(model, 1.0)
        optimizer.step()
        samples.append(perf_counter() - began)
    return _typical(samples[1:]) / sum(p.nbytes for p in model.parameters.values())


def _measure_disk() -> float:
    """Seconds per byte of writing and reading a file in the directory for temporary files."""
    data = np.random.default_rng(0).bytes(DISK_PROBE_BYTES)
    with tempfile.TemporaryFile(buffering=0) as file:
        began = perf_counter()
        os.pwrite(file.fileno(), data, 0)
        os.pread(file.fileno(), DISK_PROBE_BYTES, 0)
        return (perf_counter() - began) / (2 * DISK_PROBE_BYTES)
