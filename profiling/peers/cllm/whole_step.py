"""The contestant of whole_step.py: a process that trains a model by whole steps, and says what it holds."""

from jobs import models

from peers import process

STATE: dict = {}


def make(model: dict, batch_size: int, seq_len: int | None, threads: int, strategy: str = "cache", states: str | None = None,
         update_in_backward: bool | None = None, clip_norm: float | None = None, clip_by: str = "all", limit: int | None = None,
         allow: list[str] | None = None, hard_limit: int | None = None) -> dict:
    """Model, optimizer and executor; what was planned, and what was allocated for it.

    Parameters
    ----------
    limit, allow : int, list of str
        Of a budget, which then decides instead of `strategy`.
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
    start = resident.resident_bytes()
    architecture = models.architecture(model)
    deciding = strategy if limit is None else cllm.MemoryBudget(limit, tuple(allow))
    plan = cllm.plan(architecture, batch_size, seq_len, deciding, num_threads=threads, states=states,
                     update_in_backward=update_in_backward, clip_by=clip_by if clip_norm is not None else None)
    trained = cllm.Model(architecture, seed=0)
    optimizer = cllm.AdamW(trained, lr=1e-3)
    executor = cllm.Executor(trained, batch_size, seq_len, plan, num_threads=threads)
    STATE.update(model=trained, optimizer=optimizer, executor=executor, start=start, clip=(clip_norm, clip_by),
                 batches=batches_of(Job(architecture, batch_size, seq_len)), seq_len=seq_len)
    memory = executor.memory
    return {"total_bytes": memory.total_bytes, "arena_bytes": memory.arena_bytes, "disk_bytes": memory.disk_bytes,
            "parts": memory.parts(), "plan": plan.to_dict(), "predicted_seconds": plan.predicted_seconds,
            "source": plan.estimate.source}


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
    process.serve(make=make, train=train, held=held, snapshot=snapshot)
