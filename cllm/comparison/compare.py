"""`compare`: the same training under several strategies, each in fresh processes, from a script or a notebook."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cllm.calibrate import calibrate_where_wanted, source_of_seconds
from cllm.checks import checked_size
from cllm.comparison.contestants import labelled
from cllm.comparison.data import check_data
from cllm.comparison.experiment import Experiment, report_of, run_experiments
from cllm.comparison.files import write_json, write_whole
from cllm.comparison.job import Job
from cllm.comparison.machine import describe_machine
from cllm.locate import ReachedComparison, is_loading
from cllm.models.architecture import Architecture, checked_architecture


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured. What tables, pictures and pages need is imported when they are made: `import cllm` is quicker so.

    Attributes
    ----------
    report : dict
        All of it as plain data: what `to_json` writes.
    """

    report: dict

    @property
    def rows(self) -> list[dict]:
        """One for each strategy, in the order given; one that failed has its reason in ``error``."""
        return self.report["rows"]

    @property
    def problems(self) -> list[str]:
        """Sentences; empty when every strategy ran and exact ones agree to the last bit."""
        return self.report["problems"]

    def table(self, by_parameter: bool = False) -> str:
        """The rows as text; `by_parameter` adds how far gradients of inexact strategies are off, one by one."""
        from cllm.comparison.printed import text_of

        return text_of(self.report, by_parameter)

    def to_json(self, path: str | os.PathLike) -> None:
        """Write the report as JSON, whole or not at all; raises `DataError`."""
        write_json(Path(path), self.report)

    def plot(self, path: str | os.PathLike) -> None:
        """Draw step time, arena and process peak as PNG or SVG, by the ending of `path`; raises `DataError`."""
        from cllm.comparison.drawing import draw_report

        draw_report(self.report, Path(path))

    def html(self, path: str | os.PathLike) -> None:
        """Write everything as one page that loads nothing; raises `DataError`."""
        from cllm.comparison.html import page

        write_whole(Path(path), page.render(self.report))


def compare(architecture: Architecture, strategies: Iterable, batch_size: int = 8, seq_len: int | None = None, steps: int = 3,
            rounds: int = 2, dtype: str = "float32", num_threads: int | None = None,
            text: str | os.PathLike | None = None, seed: int = 0, calibrate: bool = True,
            compute: str = "float32", groups: int | None = None, processes: int = 1, launcher: str | None = None) -> Comparison:
    """Train one model under several strategies and measure each, as ``cllm compare`` does.

    Every run is a fresh process. It finds classes of yours by their file or module: it loads that file up to the first
    call of `compare` in it, under another name than ``__main__``, so no ``if __name__ == "__main__"`` is needed, and what
    the file does before that call is done in every process. Put slow work below it, or under such an ``if``.

    A model that is fed tokens and targets and takes every byte reads windows of a text; any other the batches of its
    `example_batch`.

    Parameters
    ----------
    architecture : Architecture
    strategies : iterable of strategies, plans and names
    batch_size : int
    seq_len : int or None
        None for a model without time steps.
    steps, rounds : int
        Timed steps of each run, after one that is not; and fresh processes of each strategy, in turn.
    dtype : {"float32", "float64"}
    num_threads : int or None
        None takes all cores.
    text : path or None
        None is the embedded text.
    seed : int
        Of the weights and the batches.
    calibrate : bool
        Measure this machine first where a budget has to be decided on and nothing is stored (some 20 s at most, kept).
    compute : {"float32", "bfloat16", "bfloat16:units"}
        As of `Model`.
    groups : int or None
        As of `Executor`; None is as many as processes.
    processes : int
        Processes that share every run, started anew for it; needs the extra ``mpi``. `num_threads` are of each.
    launcher : str or None
        The command that starts them; None is "mpirun --bind-to none".

    Returns
    -------
    Comparison

    Raises
    ------
    ConfigError
        When an argument is outside what it may be, or a class was made in a function, typed into a notebook, or is
        otherwise nowhere that another process finds it. Nothing has run then.
    DataError
        When the text cannot be used.
    KeyboardInterrupt
        After Ctrl-C; the process under way is ended.
    """
    if is_loading():
        raise ReachedComparison
    chosen = labelled(strategies)
    job = Job(checked_architecture("compare(architecture)", architecture), batch_size, seq_len, steps, dtype, num_threads,
              None if text is None else os.fspath(text), seed, compute=compute, groups=processes if groups is None else groups,
              processes=processes, launcher=launcher)
    rounds = checked_size("compare(rounds=...)", rounds)
    check_data(job)
    if calibrate:
        calibrate_where_wanted(job.used, job.workload, chosen.values())
    points = [Experiment(job, chosen, predicted_from=source_of_seconds(job.used, job.workload))]
    runs = run_experiments(points, rounds, lambda *_: None, lambda *_: None)
    if runs[0].interrupted:
        raise KeyboardInterrupt
    return Comparison(report_of(points, runs, describe_machine(), {}))
