"""The optimal persistent schedule of a chain of unequal blocks under a limit (Beaumont et al. 2019, *rotor*)."""

from dataclasses import dataclass
from math import inf

import numpy as np

from cllm.checks import checked_size, keep
from cllm.planner.block_costs import BlockCost, EndCost
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Segment, Tape
from cllm.program.dims import aligned
from cllm.strategies.limits import Attempt, UnderALimit


@dataclass(frozen=True, slots=True)
class Rotor(UnderALimit):
    """Each block is taped whole, or lies in a segment that is swept and opened, to any depth; which, a dynamic program says.

    With C(s, t, m) the least seconds to go forward and backward through blocks s to t - 1 in m bytes, the input of s among
    them,

        C(s, t, m) = min( tape_s + C(s + 1, t, m - K_s),  min over s' of sweep(s, s') + C(s, s', m) + C(s', t, m - a_s) )

    where K_s is what a taped block leaves, a_s its input, and either way needs m to be at least its peak. Bytes are counted in
    slots, as in the paper.

    Parameters
    ----------
    limit : int or str
        Of total bytes, as of `MemoryBudget`.
    slots : int
        Into which the room is divided; sizes are rounded up to them.
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    limit: int | str
    slots: int = 500
    micro_batch: int | None = None

    def __post_init__(self):
        UnderALimit.__post_init__(self)
        keep(self, "Rotor", "slots", checked_size)

    def attempts(self, ledger: Ledger) -> Attempt:
        blocks, end = ledger.chain(self.micro_batch)
        waiting = sum(c.waiting_bytes for c in (end, *blocks))

        def attempt(room: int) -> Plan | None:
            nodes = _Chain(blocks, end, room - waiting - end.kept, self.slots).nodes()
            return None if nodes is None or end.input_peak + waiting > room else Plan(nodes, self.micro_batch)

        return attempt


class _Chain:
    """Tables of seconds by slots of memory, and of the choice that gives them: 0 is a tape, n a segment of n blocks."""

    def __init__(self, blocks: tuple[BlockCost, ...], end: EndCost, room: int, slots: int):
        self.blocks, self.room, self.end = blocks, max(room, 0), end
        self.slot = aligned(max(1, -(-self.room // slots)))  # buffers are multiples of it in small rooms: nothing is lost
        self.count = self.room // self.slot + 1
        self._kinds = tuple(next(i for i, other in enumerate(blocks) if other is b) for b in blocks)
        self._known: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def nodes(self) -> tuple[Tape | Segment, ...] | None:
        """The best list; None where nothing fits."""
        last = self.count - 1
        if not np.isfinite(self._best(0, len(self.blocks), False)[0][last]):
            return None
        return tuple(self._list(0, len(self.blocks), False, last))

    def _best(self, start: int, stop: int, opened: bool) -> tuple[np.ndarray, np.ndarray]:
        """Seconds and choice by slots of what lies between two blocks: at the end of the network, or inside an opened
        segment, where the gradient of its output waits."""
        if start == stop:
            return self._above(self.end.peak, 0.0), np.zeros(self.count, int)
        key = self._kinds[start:stop], opened
        if key not in self._known:
            for first in reversed(range(start + 1, stop)):  # from the end, so that no recursion is deep
                self._best(first, stop, opened)
            self._known[key] = self._made(start, stop, opened)
        return self._known[key]

    def _made(self, start: int, stop: int, opened: bool) -> tuple[np.ndarray, np.ndarray]:
        block, tape = self.blocks[start], self.blocks[start].tapes[0]
        waiting = self.blocks[stop - 1].output_bytes if opened else 0
        if opened and stop - start == 1:
            return self._above(tape.last_peak, tape.last_seconds), np.zeros(self.count, int)
        ways = [self._above(max(tape.forward_peak + waiting, tape.backward_peak), tape.seconds)
                + self._less(self._best(start + 1, stop, opened)[0], tape.kept)]
        for after in range(start + 1, stop + (not opened)):
            others = [b.passing_peak for b in self.blocks[start + 1:after]]
            peak = max(block.sweep_peak, block.input_bytes + max(others, default=0)) + waiting
            seconds = sum(b.sweep_seconds for b in self.blocks[start:after])
            ways.append(self._above(peak, seconds) + self._best(start, after, True)[0]
                        + self._less(self._best(after, stop, opened)[0], block.input_bytes))
        table = np.array(ways)
        choice = table.argmin(axis=0)
        return table[choice, np.arange(self.count)], choice

    def _above(self, nbytes: int, seconds: float) -> np.ndarray:
        """Those seconds from so many bytes on, infinity below."""
        out = np.full(self.count, inf)
        out[-(-nbytes // self.slot):] = seconds
        return out

    def _less(self, table: np.ndarray, nbytes: int) -> np.ndarray:
        """The table where so many bytes are taken already."""
        taken = min(-(-nbytes // self.slot), self.count)
        return np.concatenate((np.full(taken, inf), table[:self.count - taken]))

    def _list(self, start: int, stop: int, opened: bool, slots: int) -> list[Tape | Segment]:
        nodes: list[Tape | Segment] = []
        while start < stop:
            choice = int(self._best(start, stop, opened)[1][slots])
            if choice:
                nodes.append(Segment(tuple(self._list(start, start + choice, True, slots))))
                taken, start = self.blocks[start].input_bytes, start + choice
            else:
                nodes.append(Tape(start))
                taken, start = self.blocks[start].tapes[0].kept, start + 1
            slots -= -(-taken // self.slot)
        return nodes
