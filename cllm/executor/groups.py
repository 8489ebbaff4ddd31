"""The groups of a batch that a process goes through, and what is added up over those of all processes.

Between processes there are three things: small records that everyone hears of, arrays that two swap, and parts of an array that
all put together. A `Team` has them; `cllm.distributed` makes one of MPI.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cllm import _kernels as kernels
from cllm.errors import CllmError, ConfigError, NonFiniteError
from cllm.executor.stopwatch import Stopwatch
from cllm.program.shards import cuts, part_of
from cllm.program.workload import Workload

TOLD = "told in all processes"
PIECE_BYTES = 4 << 20  # that are sent at a time when arrays are put together


class Team(Protocol):
    """Processes that work on one batch, each with the same program, model and feeds.

    Attributes
    ----------
    rank, size : int
        Number of this process, and how many there are.
    """

    rank: int
    size: int

    def tell(self, value) -> list:
        """What every process passes, in their order, to all of them: a few plain values."""

    def swap(self, mine: np.ndarray, theirs: np.ndarray, peer: int) -> None:
        """Send one array to another process, and write what comes from it into the other. Both of one axis."""

    def send(self, array: np.ndarray, peer: int) -> None:
        """Send an array of one axis, for which the other process waits."""

    def receive(self, array: np.ndarray, peer: int) -> None:
        """Write into an array what the other process sends."""

    def spread(self, array: np.ndarray, bounds: Sequence[tuple[int, int]]) -> None:
        """Write into an array of one axis, in place, the elements of each process's bounds as that process has them."""


class Groups:
    """What of a batch is this process's, and sums over all of it.

    Parameters
    ----------
    workload : Workload
    team : Team or None
        None where there is one process.

    Attributes
    ----------
    own : range
        Numbers of the groups of this process.
    shared : bool
        Whether there are other processes.
    watch : Stopwatch
        Begun with a batch.
    seconds : list of float
        Of the last batch, up to its loss: each process's own work, without waiting for the others.
    received_bytes : int
        Of arrays that came from other processes, so far.
    """

    def __init__(self, workload: Workload, team: Team | None = None):
        self._team = team
        rank = 0 if team is None else team.rank
        self.own = range(rank * workload.own_groups, (rank + 1) * workload.own_groups)
        self.shared = workload.processes > 1
        self.seconds: list[float] = []
        self.received_bytes = 0
        self.watch = Stopwatch()

    def tell(self, value) -> list:
        """As of `Team`."""
        return self.watch.waits(self._team.tell, value) if self.shared else [value]

    def together(self, where: str, call: Callable[[], Any], mark: Callable[[], Mapping] = dict) -> Any:
        """As the function of that name."""
        return together(self if self.shared else None, where, call, mark)

    def total(self, sums: Sequence[float]) -> float:
        """The sum over all groups of what is given for each of this process, in the order of a binary tree."""
        told = self.tell((list(sums), self.watch.seconds))
        self.seconds = [seconds for _, seconds in told]
        level = [value for some, _ in told for value in some]
        while len(level) > 1:
            level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    def in_order(self, of_ranks: list) -> list:
        """What processes told, in the order of their parts."""
        return [of for _, of in sorted(zip((part_of(rank, len(of_ranks)) for rank in range(len(of_ranks))), of_ranks,
                                           strict=True), key=lambda pair: pair[0])]

    def part(self, size: int, per: int = 1) -> tuple[int, int]:
        """The elements of an array of so many that are this process's, as (start, stop); `per` as of `cuts`."""
        return self._bounds(size, per)[self._team.rank] if self.shared else (0, size)

    def reduce(self, flat: np.ndarray, message: np.ndarray) -> None:
        """Leave in this process's part of an array of one axis the sum over all processes, in the order of a binary tree; the
        rest of it is undefined. `message` is room for what comes."""
        bounds = cuts(flat.size, self._team.size)
        low, high, rank = 0, self._team.size, self._team.rank
        for level in range(self._team.size.bit_length() - 1):
            middle = (low + high) // 2
            lower, upper = (low, middle), (middle, high)
            kept, given = (upper, lower) if rank >> level & 1 else (lower, upper)
            (start, stop), (first, last) = ((bounds[a], bounds[b]) for a, b in (kept, given))
            for done in range(0, max(stop - start, last - first), message.size):
                mine = flat[min(last, first + done):min(last, first + done + message.size)]
                sums = flat[min(stop, start + done):min(stop, start + done + message.size)]
                self.watch.waits(self._team.swap, mine, message[:sums.size], rank ^ 1 << level)
                self.received_bytes += sums.nbytes
                kernels.add_in_place(message[:sums.size], y=sums)
            low, high = kept

    def spread(self, array: np.ndarray) -> None:
        """Write into an array what each process has in its part of it."""
        start, stop = self.part(array.size)
        self.watch.waits(self._team.spread, array.reshape(-1), self._bounds(array.size))
        self.received_bytes += (array.size - (stop - start)) * array.itemsize

    def gathered(self, parts: Iterable[tuple[np.ndarray, int, int]]) -> Iterator[np.ndarray]:
        """Whole arrays, given this process's part, the size, and what an element stands for of each (see `cuts`), piece by
        piece: in process 0. In others nothing, which send what it asks for; all have to go to the end."""
        room = np.empty(PIECE_BYTES if self._team.rank == 0 else 0, np.uint8)
        for mine, size, per in parts:
            most = PIECE_BYTES // mine.itemsize
            for rank in sorted(range(self._team.size), key=lambda rank: part_of(rank, self._team.size)):
                start, stop = self._bounds(size, per)[rank]
                for at in range(0, stop - start, most):
                    length = min(most, stop - start - at)
                    if self._team.rank == rank == 0:
                        yield mine[at:at + length]
                    elif self._team.rank == rank:
                        self._team.send(mine[at:at + length], 0)
                    elif self._team.rank == 0:
                        piece = room[:length * mine.itemsize].view(mine.dtype)
                        self._team.receive(piece, rank)
                        yield piece

    def _bounds(self, size: int, per: int = 1) -> list[tuple[int, int]]:
        """The part of each process."""
        bounds, processes = cuts(size, self._team.size, per), self._team.size
        return [(bounds[number], bounds[number + 1]) for number in (part_of(rank, processes) for rank in range(processes))]


def together(team: Team | Groups | None, where: str, call: Callable[[], Any], mark: Callable[[], Mapping] = dict) -> Any:
    """What `call` returns, if it raises nowhere, and if `mark` returns the same in all processes afterwards.

    Raises
    ------
    ConfigError, or what `call` raised here
        In every process, so that none waits for another for ever.
    """
    if team is None:
        return call()
    try:
        made = call()
        marked = mark()
    except Exception as error:  # whatever it is: the call may read files, or be the caller's own
        team.tell((str(error) if isinstance(error, CllmError) else f"{type(error).__name__}: {error}", None))
        error.add_note(TOLD)
        raise
    told = team.tell((None, marked))
    for rank, (failure, of_rank) in enumerate(told):
        refused = None
        if failure is not None:
            refused = ConfigError(f"{where}, process {rank}", "must be as in the others", failure.rstrip("."),
                                  "See what that one lacks.")
        elif of_rank != told[0][1]:
            refused = ConfigError(where, "must be the same in all processes", f"another in process {rank} than in process 0: "
                                  f"{_difference(of_rank, told[0][1])}", "Give all of them the same model, settings and data.")
        if refused is not None:
            refused.add_note(TOLD)
            raise refused
    return made


def is_told(error: BaseException) -> bool:
    """Whether all processes have heard of an error, so that each of them raises one at the same place."""
    return isinstance(error, NonFiniteError) or TOLD in getattr(error, "__notes__", ())


def _difference(one: Mapping, other: Mapping) -> str:
    """What two marks do not have in common."""
    return ", ".join(f"{name} {one.get(name)!r} and {other.get(name)!r}" for name in {**one, **other}
                     if one.get(name) != other.get(name))
