"""The frontier of a workload: every plan that is not beaten in both bytes and seconds, computed once.

The shape of the problem. The blocks are a chain, and a plan's tree is run. With K the bytes that a child of the tree
leaves behind in forward, F and G the highest bytes alive during its forward and its backward (its own included, those of
earlier children not), the peak of a list of children c1, c2, ... is built from its end:

    peak(c, rest) = max(F_c, G_c, K_c + peak(rest)),        seconds(c, rest) = seconds_c + seconds(rest)

Both grow with peak(rest) and seconds(rest), so the best lists come from the best rests: dynamic programming over sets of
(peak, seconds) pairs, none beaten by another, loses nothing. It starts from the end of the network (head and loss), whose
choice is its number of rows. A child is a tape, or a segment: K is its input, F a sweep, G the peak of the list inside
it, run while the gradient of its output waits: the same recursion again, so nesting of any depth is in it.

Bytes here are live bytes; what a plan costs packed is, as ever, said by `Ledger.evaluate`.
"""

from dataclasses import dataclass

import numpy as np

from cllm.block_costs import BlockCost, EndCost, OneBlock
from cllm.costs import Rates
from cllm.memory import batch_bytes, optimizer_bytes, parameter_bytes, table_bytes
from cllm.plans import Plan
from cllm.program import Program
from cllm.schedule import default_loss_rows
from cllm.segments import Segment, Tape
from cllm.workload import Workload

# Pairs kept of a set inside the recursion. Networks of a dozen blocks stay below the first; on deep ones the second, and
# fewer lengths of segments, bound the time of planning.
MOST = 2000
MOST_DEEP = 40
DEEP = 24  # blocks
LEAST_LOSS_ROWS = 16
ROUNDING = 1e-12  # sums of the same seconds in another order differ by less: no gain, so the fewer bytes win


@dataclass(frozen=True, slots=True)
class Pairs:
    """(peak, seconds) pairs by rising peak and falling seconds, and how each was made: three whole numbers."""

    peak: np.ndarray
    seconds: np.ndarray
    made: np.ndarray

    @staticmethod
    def best(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], most: int) -> "Pairs":
        """Those of all the parts that no other beats; thinned evenly in the logarithm of the peak to `most`."""
        peak, seconds, made = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((seconds, peak))
        peak, seconds = peak[order], seconds[order]
        keep = np.ones(len(peak), bool)
        keep[1:] = seconds[1:] < np.minimum.accumulate(seconds)[:-1] * (1 - ROUNDING)
        peak, seconds, made = peak[keep], seconds[keep], made[order[keep]]
        if len(peak) > most:
            grid = np.geomspace(max(1.0, peak[0]), peak[-1], most)
            chosen = np.unique(np.clip(np.searchsorted(peak, grid, side="right") - 1, 0, len(peak) - 1))
            chosen[0], chosen[-1] = 0, len(peak) - 1
            peak, seconds, made = peak[chosen], seconds[chosen], made[chosen]
        return Pairs(peak, seconds, made)


class Chain:
    """The recursion over the blocks of one size of micro-batch."""

    def __init__(self, blocks: list[BlockCost], ends: list[EndCost], recompute: bool):
        self.blocks, self.ends, self.recompute = blocks, ends, recompute
        self.most = MOST if len(blocks) <= DEEP else MOST_DEEP
        self._columns = {id(b): tuple(np.array([getattr(t, name) for t in b.tapes]) for name in (
            "kept", "forward_peak", "backward_peak", "seconds", "last_peak", "last_seconds")) for b in blocks}
        self._opened: dict[tuple[int, ...], Pairs] = {}
        count = len(ends)
        rest = Pairs.best([(np.array([e.peak for e in ends], float), np.array([e.seconds for e in ends]),
                            np.column_stack((np.arange(count), np.zeros((count, 2), int))))], self.most)
        self.suffixes = [rest]
        for start in reversed(range(len(blocks))):
            self.suffixes.insert(0, self._list(start, len(blocks), self.suffixes, 0))

    @property
    def top(self) -> Pairs:
        """The whole chain's pairs."""
        return self.suffixes[0]

    def _list(self, start: int, stop: int, rests: list[Pairs], waiting: int) -> Pairs:
        """Lists of children from `start` on, followed by a rest; `rests[i]` begins i + 1 blocks further on."""
        block = self.blocks[start]
        kept, forward, backward, seconds = self._columns[id(block)][:4]
        own = np.maximum(forward + waiting, backward)
        rest = rests[0]
        parts = [_combine(own, kept, seconds, rest, np.arange(len(own)))]
        longest = stop - start - bool(waiting)  # in a segment the last child is no segment: opening it would be for nothing
        for length in _lengths(longest, len(self.blocks) > DEEP) if self.recompute else ():
            rest = rests[length - 1]
            inside = self.opened(start, start + length)
            sweep, swept = self._sweep(start, start + length)
            own = np.maximum(inside.peak, sweep + waiting)
            parts.append(_combine(own, np.full(len(own), block.input_bytes), inside.seconds + swept, rest,
                                  np.arange(len(own)), -length))
        return Pairs.best(parts, self.most)

    def opened(self, start: int, stop: int) -> Pairs:
        """The lists inside a segment, run while the gradient of its output waits."""
        kind = tuple(id(b) for b in self.blocks[start:stop])
        if kind not in self._opened:
            block = self.blocks[start]
            if stop - start == 1:
                peak, seconds = self._columns[id(block)][4:]
                made = np.column_stack((np.arange(len(peak)), np.zeros((len(peak), 2), int)))
                self._opened[kind] = Pairs.best([(peak.astype(float), seconds, made)], self.most)
            else:
                rests = [self.opened(i, stop) for i in range(start + 1, stop)]
                self._opened[kind] = self._list(start, stop, rests, self.blocks[stop - 1].input_bytes)
        return self._opened[kind]

    def _sweep(self, start: int, stop: int) -> tuple[int, float]:
        first, *others = self.blocks[start:stop]
        peak = max([first.sweep_peak, *(first.input_bytes + b.sweep_peak for b in others)])
        return peak, sum(b.sweep_seconds for b in self.blocks[start:stop])

    def plan(self, index: int, micro_batch: int) -> Plan:
        """The plan of a pair of `top`."""
        children, start, pairs = [], 0, self.top
        while start < len(self.blocks):
            node, start, index = self._node(start, pairs.made[index])
            children.append(node)
            pairs = self.suffixes[start]
        return Plan(tuple(children), micro_batch, self.ends[int(pairs.made[index][0])].loss_rows)

    def _node(self, start: int, made) -> tuple[Tape | Segment, int, int]:
        choice, inside, rest = (int(n) for n in made)
        if choice >= 0:
            return Tape(start, self.blocks[start].tapes[choice].decisions), start + 1, rest
        return Segment(self._inside(start, start - choice, inside)), start - choice, rest

    def _inside(self, start: int, stop: int, index: int) -> tuple[Tape | Segment, ...]:
        children = []
        while stop - start > 1:
            node, start, index = self._node(start, self.opened(start, stop).made[index])
            children.append(node)
        choice = int(self.opened(start, stop).made[index][0])
        return (*children, Tape(start, self.blocks[start].tapes[choice].decisions))


class Frontier:
    """Plans of a workload, none beaten in bytes and seconds.

    Attributes
    ----------
    nbytes, seconds : arrays
        Total bytes before packing, rising, and seconds of a step, falling.
    """

    def __init__(self, program: Program, workload: Workload, rates: Rates, allow: tuple[str, ...]):
        recompute = "recompute" in allow
        fixed = 2 * parameter_bytes(program, workload) + optimizer_bytes(program, workload) + table_bytes(program, workload)
        update = rates.update_seconds(program, workload)
        parts = []
        self._chains: list[tuple[int, Chain]] = []
        for micro in micro_batches(workload.batch) if "micro_batch" in allow else (workload.batch,):
            chain, ends = _chain(program, workload, rates, micro, recompute)
            total = np.maximum(chain.top.peak, ends.input_peak) + ends.waiting_bytes + fixed + batch_bytes(workload, micro)
            seconds = chain.top.seconds * (workload.batch / micro) + ends.epilogue_seconds + update
            count = len(total)
            parts.append((total, seconds, np.column_stack((np.full(count, len(self._chains)), np.arange(count),
                                                           np.zeros(count, int)))))
            self._chains.append((micro, chain))
        best = Pairs.best(parts, MOST)
        self.nbytes, self.seconds, self._made = best.peak.astype(np.int64), best.seconds, best.made

    def __len__(self) -> int:
        return len(self.nbytes)

    def plan(self, index: int) -> Plan:
        """The plan at that place of the frontier."""
        which, pair, _ = self._made[index]
        micro, chain = self._chains[which]
        return chain.plan(int(pair), micro)


def _combine(own, kept, seconds, rest: Pairs, inside, choice: int | None = None):
    """All pairs of a child's own costs with a rest; `choice` is that of all of them, or None for their own number."""
    peak = np.maximum(own[:, None], kept[:, None] + rest.peak[None, :])
    total = seconds[:, None] + rest.seconds[None, :]
    made = np.empty((len(own), len(rest.peak), 3), int)
    made[:, :, 0] = inside[:, None] if choice is None else choice
    made[:, :, 1] = inside[:, None]
    made[:, :, 2] = np.arange(len(rest.peak))
    return peak.ravel().astype(float), total.ravel(), made.reshape(-1, 3)


def _lengths(longest: int, deep: bool) -> list[int]:
    """Lengths of segments to try: all, or on deep networks all short ones and some long ones."""
    if not deep:
        return list(range(1, longest + 1))
    return sorted({n for n in (*range(1, 7), *(round(1.3 ** k) for k in range(7, 40))) if n <= longest})


def micro_batches(batch: int) -> tuple[int, ...]:
    """Sizes of micro-batch that differ in their number: the smallest for each."""
    return tuple(sorted({-(-batch // count) for count in range(1, batch + 1)}, reverse=True))


def _chain(program: Program, workload: Workload, rates: Rates, micro: int, recompute: bool) -> tuple[Chain, EndCost]:
    costs: dict[tuple, BlockCost] = {}
    blocks = []
    for number in range(program.n_blocks):
        kind = program.kind_of_block(number)
        if kind not in costs:
            one = OneBlock(program.with_block(number), workload, rates, micro)
            costs[kind] = one.block(recompute)
        blocks.append(costs[kind])
    rows = default_loss_rows(micro * workload.time, workload.config.vocab_size, workload.itemsize)
    one = OneBlock(program.with_block(0), workload, rates, micro)
    choices = {rows}
    while recompute and rows > LEAST_LOSS_ROWS:
        rows = -(-rows // 2)
        choices.add(rows)
    ends = [one.ends(r) for r in sorted(choices, reverse=True)]
    return Chain(blocks, ends, recompute), ends[0]
