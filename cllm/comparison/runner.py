"""Rounds of fresh processes: every (round, strategy) is one, and the rounds are interleaved.

Interleaving spreads a slow minute of the machine over all strategies instead of charging it to one. A fresh process
makes the peak of one strategy independent of what ran before it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cllm.comparison.first_gradients import FirstGradients
from cllm.comparison.job import Job
from cllm.comparison.parcel import pack
from cllm.distributed import launcher

PATIENCE = 10.0  # seconds in which a process, or the launcher of several, that is told to end ends
WORKER = [sys.executable, "-P", "-m", "cllm.comparison.worker"]


@dataclass(frozen=True, slots=True)
class Run:
    """What one fresh process, of the strategy of that label, brought back: figures, or the error that ended it."""

    strategy: str
    round: int
    result: dict | None = None
    error: str | None = None


@dataclass(slots=True)
class Runs:
    """All runs so far, in order, whether the user cut them short, and how far inexact gradients are from exact ones.

    Strategies are by their labels (see `contestants.labelled`).
    """

    job: Job
    strategies: Mapping[str, object]
    done: list[Run] = field(default_factory=list)
    interrupted: bool = False
    gradient_errors: dict[str, dict] = field(default_factory=dict)


def run_rounds(job: Job, strategies: Mapping[str, object], rounds: int, on_step: Callable[[str, int, int], None],
               on_run: Callable[[Runs], None]) -> Runs:
    """Train `job` under every strategy, `rounds` times, each time in a fresh process.

    Parameters
    ----------
    strategies : dict of strategies by label
        Strategies, plans or names.
    on_step : callable
        Called with the strategy's label, the round and the step's number after each step.
    on_run : callable
        Called with all runs so far after each process, so that partial results can be kept.

    Returns
    -------
    Runs
        Partial, with ``interrupted`` set, after Ctrl-C. A strategy that failed is not tried in later rounds.

    Raises
    ------
    ConfigError
        When the model or a strategy cannot travel to another process, or there is nothing that starts several; nothing has run
        then.
    """
    runs, command = Runs(job, dict(strategies)), command_of(job)
    packed = pack("the model", job)
    parcels = {label: {"job": packed, "strategy": pack(label, strategy)} for label, strategy in strategies.items()}
    failed: set[str] = set()
    try:
        with tempfile.TemporaryDirectory(prefix="cllm-") as folder:
            gradients = FirstGradients(job, runs.strategies, Path(folder))
            for number in range(rounds):
                for label, parcel in parcels.items():
                    if label in failed:
                        continue
                    file = gradients.file_for(label)
                    run = run_once(parcel, label, number, on_step, file, command)
                    runs.done.append(run)
                    if run.error is not None:
                        failed.add(label)
                    elif file is not None:
                        runs.gradient_errors.update(gradients.written(label, file))
                    on_run(runs)
    except KeyboardInterrupt:
        runs.interrupted = True
    return runs


def run_once(parcel: dict[str, str], label: str, number: int, on_step: Callable[[str, int, int], None],
             gradients: Path | None = None, command: Sequence[str] = WORKER) -> Run:
    """One fresh process, or several that share the run.

    Parameters
    ----------
    parcel : dict
        ``job`` and ``strategy``, packed.
    on_step : callable
        As of `run_rounds`.
    gradients : Path or None
        Where the first gradients are wanted.
    command : sequence of str
        See `command_of`.
    """
    result = error = None
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the other.
        worker = subprocess.Popen(command, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=complaints, text=True, env=_environment(),
                                  start_new_session=True)
        try:
            # The caller's own folders to import from: the first of them may be "", the current one.
            _send(worker, {"path": [os.path.abspath(folder) for folder in sys.path], **parcel,
                           "gradients": None if gradients is None else str(gradients)})
            for line in worker.stdout:
                if not line.startswith("{"):
                    continue  # a launcher's own words
                message = json.loads(line)
                if "step" in message:
                    on_step(label, number, message["step"])
                result, error = message.get("result"), message.get("error")
            worker.wait()
        finally:
            _end(worker)
            worker.stdout.close()
        if result is None and error is None:
            complaints.seek(0)
            error = _cause_of_death(worker.returncode, complaints.read())
    return Run(label, number, result, error)


def command_of(job: Job) -> list[str]:
    """The command of a run.

    Raises
    ------
    ConfigError
        When it takes a launcher, and there is none.
    """
    return [*launcher(job.launcher), "-n", str(job.processes), *WORKER] if job.processes > 1 else WORKER


def _end(worker: subprocess.Popen) -> None:
    """End a run that is under way: in peace, so that a launcher takes with it what it has started."""
    if worker.poll() is None:
        worker.terminate()
        try:
            worker.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _send(worker: subprocess.Popen, request: dict) -> None:
    try:
        with worker.stdin as stdin:
            stdin.write(json.dumps(request) + "\n")
    except BrokenPipeError:
        pass  # it is already dead; its end is reported from its return code


def _environment() -> dict[str, str]:
    """This environment, with this very package first in line, wherever it was imported from."""
    home = Path(__file__).resolve().parents[2]
    if home.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    others = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(home), *others])}


def _cause_of_death(code: int, complaints: str) -> str:
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):  # of a launcher, whose process was
        return "killed by the system, most likely because memory ran out. Choose a strategy that keeps less."
    if code < 0:
        return f"ended by {signal.Signals(-code).name}. This is a defect; please report it."
    return f"ended with code {code}: {_last_words(complaints)}"


def _last_words(complaints: str) -> str:
    """The reason among what was written: what one of several processes says of itself, what their launcher says between lines
    of dashes, or else the last line."""
    lines = complaints.strip().splitlines()
    of_one = [line for line in lines if line.startswith("Error: process ")]
    _, *between = (text.strip() for text in re.split(r"^-{20,}$", complaints, flags=re.MULTILINE))
    if of_one:
        return of_one[0].removeprefix("Error: ")
    if between and between[0]:
        return " ".join(between[0].split("\n\n")[0].split())
    return lines[-1] if lines else "no message"
