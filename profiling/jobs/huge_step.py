"""Steps of a model of 1.7 billion parameters inside a limit of memory that the system enforces, and a snapshot of it.

24 layers, C 2048, F 8192, V 49152, random weights, full AdamW; the planner decides within the limit, less what interpreter and
kernels take. The limit is that of a control group where one may be made (files that the process touches count, too) and that
of RLIMIT_DATA in any case. Refused beforehand where the disk has no room for states and a snapshot. What is written goes with
the process, or when the command ends, or, where that was killed, when it is run again.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import harness
from machine import hard_limit
from peers import process

from jobs import models, options, record, whole_steps

SPARE_BYTES = 300_000_000  # of the limit: the interpreter with the text, stacks of threads, files that are under way
FOLDER = "whole-step-snapshot-"


def run(arguments, script: str) -> int:
    """The three steps; the exit code is 2 where the disk has no room."""
    model = whole_steps.llama(whole_steps.LLAMA_1700M, arguments.settings)
    needed, free = _needed(arguments, model), shutil.disk_usage(arguments.states_to).free
    print(f"{needed['parameters']:,} parameters: {needed['states'] / 1e9:.1f} GB of states and a snapshot of "
          f"{needed['snapshot'] / 1e9:.1f} GB on disk, {free / 1e9:.1f} GB are free; at most {arguments.limit / 1e9:.1f} GB in "
          "memory", flush=True)
    if free < needed["states"] + needed["snapshot"]:
        print(f"whole_step.py: {arguments.states_to} must have {needed['states'] + needed['snapshot']:,} bytes free; got "
              f"{free:,}. Make room, or name another directory.", file=sys.stderr)
        return 2
    for left in arguments.states_to.glob(f"{FOLDER}*"):
        shutil.rmtree(left, ignore_errors=True)
    with hard_limit.group(arguments.limit) as group, process.Peer(script, arguments.threads) as peer:
        if group is not None:
            group.take(peer.pid)
        data = _steps(arguments, model, peer)
        data["group"] = None if group is None else group.facts()
    path = record.write_result("whole_step_huge", arguments.threads, {
        **options.job_of(arguments, model), **needed, "limit": arguments.limit, **data}, arguments.out)
    print(f"total {data['total_bytes'] / 1e9:.2f} GB, process grew by {(data['peak_growth_bytes'] or 0) / 1e9:.2f} GB, steps "
          f"{', '.join(f'{one:.1f}' for one in data['seconds'])} s, snapshot {data['snapshot_written']['seconds']:.1f} s\n"
          f"written: {path}")
    return 0


def _needed(arguments, model: dict) -> dict:
    """Parameters, and bytes of states and of a snapshot on disk."""
    from cllm.program.workload import Workload
    from cllm.schedule.report import optimizer_bytes, parameter_bytes

    program, work = models.architecture(model).program, Workload(arguments.batch_size, arguments.seq_len)
    states, weights = optimizer_bytes(program, work), parameter_bytes(program, work)
    return {"parameters": weights // work.itemsize, "states": states, "snapshot": states + weights}


def _steps(arguments, model: dict, peer: process.Peer) -> dict:
    """What the process planned, did and held."""
    _tell("planning and making the model")
    made = peer.ask("make", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len, threads=arguments.threads,
                    limit=arguments.limit - SPARE_BYTES, allow=whole_steps.BUDGETS["both"], hard_limit=arguments.limit,
                    directory=str(arguments.states_to))
    ran, seconds = [], made["predicted_seconds"]
    for step in range(arguments.steps):
        about = "as planned" if not ran else "by the step before"
        _tell(f"[{'#' * step}{'.' * (arguments.steps - step)}] step {step + 1} of {arguments.steps}, {about} "
              f"{seconds * (arguments.steps - step):.0f} s to go")
        ran.append(peer.ask("train", first=step, count=1))
        seconds = ran[-1]["seconds"][0]
    held = peer.ask("held")
    _tell(f"[{'#' * arguments.steps}] writing a snapshot")
    with tempfile.TemporaryDirectory(prefix=FOLDER, dir=arguments.states_to) as folder:
        written = peer.ask("snapshot", directory=str(Path(folder)))
    harness.say("")
    return {**made, **held, "snapshot_written": written, "seconds": [one["seconds"][0] for one in ran],
            "losses": [one["losses"][0] for one in ran]}


def _tell(text: str) -> None:
    """Progress: a line that overwrites itself on a terminal, else lines below each other."""
    harness.say(text) if sys.stderr.isatty() else print(text, file=sys.stderr, flush=True)
