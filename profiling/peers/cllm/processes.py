"""The contestant of processes.py: one process, or several that a launcher of MPI has started, on whole steps of one model.

The first process answers; the others do what it tells them.
"""

import harness
from jobs import models

from peers import process

STATE: dict = {}
NAP = 2e-3  # seconds, of some that a burst takes


def make(model: dict, batch_size: int, seq_len: int | None, threads: int, groups: int, strategy: str) -> dict:
    """Model, optimizer and executor; what was planned."""
    import cllm
    from cllm.comparison.data import batches_of
    from cllm.comparison.job import Job

    architecture, team = models.architecture(model), STATE["team"]
    trained = cllm.Model(architecture, seed=0)
    executor = cllm.Executor(trained, batch_size, seq_len, strategy, num_threads=threads, groups=groups, team=team)
    STATE.update(model=trained, optimizer=cllm.AdamW(trained, lr=1e-3), executor=executor, step=0,
                 batches=batches_of(Job(architecture, batch_size, seq_len)))
    memory = executor.memory
    return {"processes": 1 if team is None else team.size, "total_bytes": memory.total_bytes, "arena_bytes": memory.arena_bytes,
            "optimizer_bytes": memory.optimizer_bytes, "parameter_bytes": memory.parameter_bytes, "parts": memory.parts(),
            "predicted_seconds": executor.plan.predicted_seconds}


def burst(repeats: int) -> list[float]:
    """Seconds of so many steps in a row."""
    return harness.burst(_step, repeats)


def digest() -> str:
    """Of the weights."""
    from cllm.arrays import digest_of

    return digest_of(STATE["model"].parameters)


def operations() -> list[list]:
    """Every operation of a step of loss and gradients, with its seconds: reductions have messages and waiting in them."""
    executor = STATE["executor"]
    STATE["model"].zero_grad()
    seconds = executor.timed_step(**STATE["batches"](0))
    schedule = executor._schedule("train")
    return [[op.kind, op.name, took] for op, took in zip(schedule.whole_step(schedule.ops), seconds.tolist(), strict=True)]


def messages(nbytes: int, repeats: int) -> list[float]:
    """Seconds of reducing and gathering an array of so many bytes between all processes."""
    import numpy as np

    from cllm.executor.groups import Groups
    from cllm.program.workload import Workload

    team = STATE["team"]
    groups = Groups(Workload(team.size, None, groups=team.size, processes=team.size), team)
    array, room = np.ones(nbytes // 4, np.float32), np.empty(1 << 20, np.float32)

    def move() -> None:
        groups.reduce(array, room)
        groups.spread(array)

    return harness.burst(move, repeats)


def _step() -> None:
    s = STATE
    s["executor"].train_step(**s["batches"](s["step"]), optimizer=s["optimizer"], clip_norm=1.0)
    s["step"] += 1


def _in_all(name: str):
    """A function that the first process calls and the others call with it."""
    def call(**arguments):
        if STATE["team"] is not None:
            wake(STATE["team"])
            STATE["team"].tell((name, arguments))
        return FUNCTIONS[name](**arguments)

    return call


def wake(team) -> None:
    """End the sleep of the others."""
    for rank in range(1, team.size):
        world().send(None, rank)


def asleep(team) -> None:
    """Wait until woken, without polling: it would take a core from the contestant at work."""
    while not world().Iprobe(0):
        harness.pause(NAP)
    world().recv(source=0)


def world():
    """All processes."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


FUNCTIONS = {"make": make, "burst": burst, "digest": digest, "operations": operations, "messages": messages}


def main() -> None:
    """Answer, or do as told."""
    from cllm.distributed import launched

    team = STATE["team"] = launched()
    if team is None or team.rank == 0:
        process.serve(**{name: _in_all(name) for name in FUNCTIONS})
        return
    while True:
        asleep(team)
        name, arguments = team.tell(None)[0]
        FUNCTIONS[name](**arguments)


if __name__ == "__main__":
    main()
