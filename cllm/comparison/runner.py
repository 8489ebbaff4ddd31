"""Rounds of fresh processes: every (round, strategy) is one, and the rounds are interleaved.

Interleaving spreads a slow minute of the machine over all strategies instead of charging it to one. A fresh process
makes the peak of one strategy independent of what ran before it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cllm.comparison.first_gradients import FirstGradients
from cllm.comparison.job import Job
from cllm.comparison.parcel import pack


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
        When the model or a strategy cannot travel to another process; nothing has run then.
    """
    runs = Runs(job, dict(strategies))
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
                    run = run_once(parcel, label, number, on_step, file)
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
             gradients: Path | None = None) -> Run:
    """One fresh process.

    Parameters
    ----------
    parcel : dict
        ``job`` and ``strategy``, packed.
    on_step : callable
        As of `run_rounds`.
    gradients : Path or None
        Where the first gradients are wanted.
    """
    result = error = None
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the other.
        worker = subprocess.Popen([sys.executable, "-P", "-m", "cllm.comparison.worker"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=complaints, text=True, env=_environment(),
                                  start_new_session=True)
        try:
            # The caller's own folders to import from: the first of them may be "", the current one.
            _send(worker, {"path": [os.path.abspath(folder) for folder in sys.path], **parcel,
                           "gradients": None if gradients is None else str(gradients)})
            for line in worker.stdout:
                message = json.loads(line)
                if "step" in message:
                    on_step(label, number, message["step"])
                result, error = message.get("result"), message.get("error")
            worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            worker.stdout.close()
        if result is None and error is None:
            complaints.seek(0)
            error = _cause_of_death(worker.returncode, complaints.read())
    return Run(label, number, result, error)


def _send(worker: subprocess.Popen, request: dict) -> None:
    try:
        with worker.stdin as stdin:
            json.dump(request, stdin)
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
    if code == -signal.SIGKILL:
        return "killed by the system, most likely because memory ran out. Choose a strategy that keeps less."
    if code < 0:
        return f"ended by {signal.Signals(-code).name}. This is a defect; please report it."
    last = complaints.strip().splitlines()[-1:] or ["no message"]
    return f"ended with code {code}: {last[0]}"
