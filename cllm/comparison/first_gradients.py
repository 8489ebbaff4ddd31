"""The gradients of the first step on file, and how far those of inexact strategies are from the exact ones.

A worker writes its gradients straight from their arrays before its peak is measured, so no figure of memory changes.
The file has no header: the arrays stand in it one after the other in the order of their names, as the digest takes
them, and their shapes follow from the job.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from cllm.comparison.job import Job
from cllm.planning import plan
from cllm.proof.closeness import Closeness, closeness


def write_gradients(gradients, path: Path) -> None:
    """Write arrays by name, a mapping such as ``model.gradients``."""
    with open(path, "wb") as file:
        for name in sorted(gradients):
            gradients[name].tofile(file)


def gradient_errors(job: Job, reference: Path, other: Path) -> dict:
    """Relative error and cosine of one file's gradients against the other's, in all and ``by_parameter``."""
    total, by_parameter, start = Closeness(), {}, 0
    exact, close = (np.memmap(path, job.dtype, "r") for path in (reference, other))
    for name, parameter in sorted(job.architecture.program.parameters.items()):
        stop = start + prod(parameter.shape)
        part = closeness(exact[start:stop], close[start:stop])
        by_parameter[name] = part.to_dict()
        total, start = total + part, stop
    if not start == len(exact) == len(close):
        raise ValueError(f"gradients of {start} elements expected, files of {len(exact)} and {len(close)} found")
    return {**total.to_dict(), "by_parameter": by_parameter}


def inexact_strategies(job: Job, strategies: Mapping[str, object]) -> frozenset[str]:
    """Labels of those whose plans lose bits; one that is refused is not among them, its run will say why."""
    return frozenset(label for label, strategy in strategies.items() if not _is_exact(job, strategy))


def _is_exact(job: Job, strategy) -> bool:
    try:
        return plan(job.architecture, job.batch_size, job.seq_len, strategy, dtype=job.dtype, num_threads=job.threads,
                    compute=job.compute, groups=job.groups, processes=job.processes).exact
    except Exception:  # a user's own strategy may raise anything
        return True


class FirstGradients:
    """Files of the first round's gradients while a job runs, compared and deleted as soon as both sides are there.

    Parameters
    ----------
    job : Job
    strategies : dict of strategies by label
        When none of them is inexact, or all are, nothing is written.
    folder : Path
        Where files go; somebody else deletes what is left.
    """

    def __init__(self, job: Job, strategies: Mapping[str, object], folder: Path):
        self._job, self._folder = job, folder
        self._inexact = inexact_strategies(job, strategies)
        self._wanted = set(strategies) if 0 < len(self._inexact) < len(strategies) else set()
        self._files: dict[str, Path] = {}
        self._reference: str | None = None

    def file_for(self, strategy: str) -> Path | None:
        """Where a worker of the strategy is to write, or None."""
        if strategy not in self._wanted or (self._reference is not None and strategy not in self._inexact):
            return None
        return self._folder / f"{len(self._files)}.gradients"

    def written(self, strategy: str, path: Path) -> dict[str, dict]:
        """What can be said now that the strategy's file is there: the errors of strategies by name."""
        self._wanted.discard(strategy)
        self._files[strategy] = path
        if strategy not in self._inexact:
            self._reference = strategy
        if self._reference is None:
            return {}
        exact = self._files[self._reference]
        waiting = [name for name, file in self._files.items() if name in self._inexact and file.exists()]
        found = {name: {"reference": self._reference, **gradient_errors(self._job, exact, self._files[name])}
                 for name in waiting}
        for name in waiting:
            self._files[name].unlink()
        return found
