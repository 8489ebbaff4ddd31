"""The contestant of whole_step.py: a process that trains a model by whole steps, and says what it holds."""

from jobs import models

from peers import process

STATE: dict = {}


def make(model: dict, batch_size: int, seq_len: int | None, threads: int, strategy: str = "cache", states: str | None = None,
         update_in_backward: bool | None = None, clip_norm: float | None = None, clip_by: str = "all", limit: int | None = None,
         allow: list[str] | None = None, directory: str | None = None, hard_limit: int | None = None) -> dict:
    """Model, optimizer and executor; what was planned, and what was resident when the model had just been made.

    Parameters
    ----------
    limit, allow, directory : int, list of str, str
        Of a budget, which then decides instead of `strategy`, `states` and `update_in_backward`.
    hard_limit : int or None
        Bytes beyond which the system refuses this process memory of its own (RLIMIT_DATA).
    """
    import resource

    import cllm
    from cllm.comparison import resident
    from cllm.comparison.data import batches_of
    from cllm.comparison.job import Job

    if hard_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (hard_limit, hard_limit))
    architecture = models.architecture(model)
    deciding = strategy if limit is None else cllm.MemoryBudget(limit, tuple(allow), directory=directory)
    plan = cllm.plan(architecture, batch_size, seq_len, deciding, num_threads=threads, states=states,
                     update_in_backward=update_in_backward, clip_by=clip_by if clip_norm is not None else None)
    batches = batches_of(Job(architecture, batch_size, seq_len))
    start = resident.resident_bytes()  # with the interpreter, the plan and the text, which are no part of the training's bytes
    trained = cllm.Model(architecture, seed=0)
    with_model = resident.resident_bytes()
    optimizer = cllm.AdamW(trained, lr=1e-3)
    executor = cllm.Executor(trained, batch_size, seq_len, plan, num_threads=threads)
    STATE.update(model=trained, optimizer=optimizer, executor=executor, start=start, clip=(clip_norm, clip_by),
                 batches=batches)
    memory = executor.memory
    return {"total_bytes": memory.total_bytes, "arena_bytes": memory.arena_bytes, "disk_bytes": memory.disk_bytes,
            "moved_bytes": _moved_bytes(executor, clip_norm is not None and clip_by == "all"), "parts": memory.parts(),
            "plan": plan.to_dict(), "predicted_seconds": plan.predicted_seconds, "source": plan.estimate.source,
            "rss_model_bytes": with_model}


def _moved_bytes(executor, norm_of_all: bool) -> dict[str, int]:
    """Bytes that a step writes to disk and reads from there: its states once, its activations in each micro-batch and pass."""
    memory, plan, work = executor.memory, executor.plan, executor.workload
    passes = 2 if plan.update_in_backward and norm_of_all else 1
    states = memory.disk_bytes - memory.spilled_bytes
    one_way = states + passes * memory.spilled_bytes * work.batch // (plan.micro_batch or work.batch)
    return {"write": one_way, "read": one_way}


def train(first: int, count: int) -> dict:
    """Losses and seconds of some steps."""
    import harness

    s, losses, seconds = STATE, [], []
    for step in range(first, first + count):
        feeds = s["batches"](step)
        took = harness.burst(lambda feeds=feeds: losses.append(
            s["executor"].train_step(**feeds, optimizer=s["optimizer"], clip_norm=s["clip"][0], clip_by=s["clip"][1])), 1)
        seconds += took
    return {"losses": losses, "seconds": seconds, "high_water_bytes": s["executor"].high_water_bytes}


def timeline() -> dict:
    """A step, operation by operation: the seconds of each, and the bytes alive during it by kind of buffer, as planned."""
    import numpy as np

    import cllm.executor.executor as inner
    from cllm import _kernels as kernels

    runs: list = []

    def timed(calls: list) -> None:
        seconds = np.empty(len(calls))
        kernels.call_timed(calls, seconds=seconds)
        runs.append(seconds)

    plain, inner._run = inner._run, timed
    try:
        train(STATE["executor"].step, 1)
    finally:
        inner._run = plain
    schedule = STATE["executor"]._schedule("step")
    alive: dict[str, list[int]] = {}
    for buffer in schedule.buffers:
        sizes = alive.setdefault(buffer.kind, [0] * len(schedule.ops))
        for position in range(buffer.first, buffer.last + 1):
            sizes[position] += buffer.nbytes
    seconds = np.concatenate(runs)
    return {"step_seconds": float(seconds.sum()), "ends": (np.cumsum(seconds) / seconds.sum()).tolist(),
            "operations": schedule.whole_step([op.kind.value for op in schedule.ops]),
            "by_kind": {kind: schedule.whole_step(sizes) for kind, sizes in alive.items()}}


def held() -> dict:
    """Bytes that are allocated for the run, array by array; the peak of the process beyond what it had before; a digest of
    weights and states."""
    from hashlib import sha256

    from cllm.comparison import resident

    s = STATE
    model, optimizer, executor = s["model"], s["optimizer"], s["executor"]
    peak = resident.peak_resident_bytes()
    arrays = [*model.parameters.values(), *model.tables.values(), *(model.gradients.values() if model.has_gradients else ())]
    arrays += {id(a): a for feeds in (executor._feeds.whole, executor._feeds.part) for a in feeds.values()}.values()
    on_disk = executor.plan.states_on_disk
    digest = sha256()
    for array in (*model.parameters.values(), *optimizer.arrays().values()):
        digest.update(memoryview(array).cast("B"))
    states = sum(array.nbytes for array in optimizer.arrays().values())
    return {"allocated_bytes": sum(a.nbytes for a in arrays) + len(executor._slab.bytes) + (0 if on_disk else states),
            "states_bytes": states, "peak_growth_bytes": None if peak is None else peak - s["start"],
            "digest": digest.hexdigest()}


def snapshot(directory: str) -> dict:
    """Write a snapshot; seconds and bytes."""
    import harness

    from cllm.snapshot import write_snapshot

    path = []
    seconds = harness.burst(lambda: path.append(write_snapshot(directory, 0, STATE["model"], STATE["optimizer"])), 1)[0]
    return {"seconds": seconds, "bytes": sum(one.stat().st_size for one in path[0].iterdir())}


if __name__ == "__main__":
    process.serve(make=make, train=train, held=held, timeline=timeline, snapshot=snapshot)
