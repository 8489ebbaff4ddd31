"""A snapshot of a state that several processes share, written once and whole: the first writes, the others send their parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from cllm.errors import SnapshotError
from cllm.executor.groups import TOLD, Groups, Team
from cllm.program.workload import Workload
from cllm.snapshot import step_of
from cllm.tensors import Streamed


@dataclass(slots=True)
class Assembled:
    """An optimizer as snapshots write it, whose arrays come piece by piece from all processes."""

    optimizer: object
    pieces: Iterator[np.ndarray]

    @property
    def kind(self) -> str:
        return self.optimizer.kind

    @property
    def steps(self) -> int:
        return self.optimizer.steps

    def stored(self) -> dict[str, Streamed]:
        """All arrays, to be taken in this order."""
        return {name: Streamed(part.shape, part.dtype, self._of(prod(part.shape)))
                for name, part in self.optimizer.stored().items()}

    def _of(self, size: int) -> Iterator[np.ndarray]:
        while size:
            piece = next(self.pieces)
            size -= piece.size
            yield piece


def write_together(team: Team | None, optimizer, write: Callable[[object], Path], keeper) -> Path:
    """What `write` returns, given an optimizer whose arrays are whole; in every process.

    Raises
    ------
    SnapshotError
        In every process, when the first cannot write.
    """
    if team is None:
        return write(optimizer)
    groups = Groups(Workload(team.size, None, groups=team.size, processes=team.size), team)
    pieces = groups.gathered([(part.mine, prod(part.shape), part.per) for part in optimizer.stored().values()])
    path = failure = None
    try:
        if team.rank == 0:
            path = write(Assembled(optimizer, pieces))
    except SnapshotError as error:
        failure = error
    for _ in pieces:  # what a failed one has left, and all of the others
        pass
    told, text = team.tell((path, failure and str(failure)))[0]
    if text is not None:
        error = failure or SnapshotError("snapshot", "must be written by the first process", text, "See there.")
        error.add_note(TOLD)
        raise error
    keeper.latest = told
    keeper.newest = max(keeper.newest, step_of(told))
    return told
