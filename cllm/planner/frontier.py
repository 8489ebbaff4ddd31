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

from collections.abc import Callable, Iterable

import numpy as np

from cllm.planner.block_costs import BlockCost, EndCost, OneBlock
from cllm.planner.costs import Speeds
from cllm.planner.pairs import Pairs, Ways, best_under, tape_ways
from cllm.plans.check import head_rows
from cllm.plans.plan import Plan
from cllm.plans.tree import Segment, Tape
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.build import default_loss_rows, scores_in_a_row
from cllm.schedule.report import batch_bytes, optimizer_bytes, parameter_bytes, table_bytes

# Pairs kept of a set inside the recursion. Most networks of a dozen blocks stay below the first; on deep ones the second,
# and fewer lengths of segments, bound the time of planning.
MOST = 4000
MOST_DEEP = 200
DEEP = 24  # blocks
DEEP_LENGTHS = (1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256)  # of segments, in deep networks
LEAST_LOSS_ROWS = 16


class Chain:
    """The recursion over the blocks of one size of micro-batch."""

    def __init__(self, blocks: list[BlockCost], ends: list[EndCost], recompute: bool):
        self.blocks, self.ends, self.recompute = blocks, ends, recompute
        self.deep = len(blocks) > DEEP
        self._columns = {id(b): tuple(np.array([getattr(t, name) for t in b.tapes]) for name in (
            "kept", "forward_peak", "backward_peak", "seconds", "last_peak", "last_seconds")) for b in blocks}
        self._kinds = tuple(id(b) for b in blocks)
        self._sweep_peaks = [b.sweep_peak for b in blocks]
        self._sweep_seconds = [b.sweep_seconds for b in blocks]
        self._opened: dict[tuple[int, ...], Pairs] = {}
        count = len(ends)
        rest = Pairs.best([(np.array([e.peak for e in ends], float), np.array([e.seconds for e in ends]),
                            np.column_stack((np.arange(count), np.zeros((count, 2), int))))], MOST)
        self.suffixes = [rest]
        for start in reversed(range(len(blocks))):
            self.suffixes.insert(0, self._list(start, len(blocks), lambda length: self.suffixes[length - 1], 0))

    @property
    def top(self) -> Pairs:
        """The whole chain's pairs."""
        return self.suffixes[0]

    def _list(self, start: int, stop: int, rest_after: Callable[[int], Pairs], waiting: int) -> Pairs:
        """Lists of children from `start` on, followed by a rest that begins after so many blocks."""
        block = self.blocks[start]
        segments = []
        longest = stop - start - bool(waiting)  # in a segment the last child is no segment: opening it would be for nothing
        for length in self._lengths(longest):
            inside = self.opened(start, start + length)
            peak, seconds = self._sweep(start, start + length)
            first = max(0, int(inside.peak.searchsorted(peak + waiting, "right")) - 1)  # the sweep hides those before
            number = np.arange(first, len(inside))
            segments.append((Ways(block.input_bytes, np.maximum(inside.peak[first:], peak + waiting),
                                  inside.seconds[first:] + seconds, np.full(len(number), -length), number),
                             rest_after(length)))
        kept, forward, backward, seconds = self._columns[id(block)][:4]
        tapes = kept, np.maximum(forward + waiting, backward), seconds
        if self.deep:
            return best_under(tapes, rest_after(1), segments, MOST_DEEP)
        rests = [(w, rest_after(1)) for w in tape_ways(*tapes)]
        return Pairs.best([w.before(rest) for w, rest in (*rests, *segments)], MOST)

    def _lengths(self, longest: int) -> Iterable[int]:
        """Lengths of segments to try: all, or on deep networks all short ones and some long ones."""
        if not self.recompute:
            return ()
        return (n for n in DEEP_LENGTHS if n <= longest) if self.deep else range(1, longest + 1)

    def opened(self, start: int, stop: int) -> Pairs:
        """The lists inside a segment, run while the gradient of its output waits."""
        kind = self._kinds[start:stop]
        if kind not in self._opened:
            if stop - start == 1:
                peak, seconds = self._columns[kind[0]][4:]
                made = np.column_stack((np.arange(len(peak)), np.zeros((len(peak), 2), int)))
                self._opened[kind] = Pairs.best([(peak.astype(float), seconds, made)], MOST)
            else:
                self._opened[kind] = self._list(start, stop, lambda length: self.opened(start + length, stop),
                                                self.blocks[stop - 1].input_bytes)
        return self._opened[kind]

    def _sweep(self, start: int, stop: int) -> tuple[int, float]:
        first, *others = self._sweep_peaks[start:stop]
        peak = max(first, self.blocks[start].input_bytes + max(others)) if others else first
        return peak, sum(self._sweep_seconds[start:stop])

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

    def __init__(self, program: Program, workload: Workload, speeds: Speeds, allow: tuple[str, ...]):
        fixed = 2 * parameter_bytes(program, workload) + optimizer_bytes(program, workload) + table_bytes(program, workload)
        update = speeds.update_seconds(program, workload)
        parts = []
        self._chains: list[tuple[int, Chain]] = []
        tables: dict = {}
        for micro in micro_batches(workload.batch) if "micro_batch" in allow else (workload.batch,):
            chain, ends = _chain(program, workload, speeds, micro, allow, tables)
            total = (np.maximum(chain.top.peak, ends.input_peak) + ends.waiting_bytes + fixed
                     + batch_bytes(program, workload, micro))
            seconds = chain.top.seconds + ends.epilogue_seconds + update
            count = len(total)
            parts.append((total, seconds, np.column_stack((np.full(count, len(self._chains)), np.arange(count),
                                                           np.zeros(count, int)))))
            self._chains.append((micro, chain))
        best = Pairs.best(parts)
        self.nbytes, self.seconds, self._made = best.peak.astype(np.int64), best.seconds, best.made

    def __len__(self) -> int:
        return len(self.nbytes)

    def plan(self, index: int) -> Plan:
        """The plan at that place of the frontier."""
        which, pair, _ = self._made[index]
        micro, chain = self._chains[which]
        return chain.plan(int(pair), micro)


def micro_batches(batch: int) -> tuple[int, ...]:
    """Sizes of micro-batch that differ in their number: the smallest for each."""
    return tuple(sorted({-(-batch // count) for count in range(1, batch + 1)}, reverse=True))


def _chain(program: Program, workload: Workload, speeds: Speeds, micro: int, allow: tuple[str, ...],
           tables: dict) -> tuple[Chain, EndCost]:
    costs: dict[tuple, BlockCost] = {}
    blocks = []
    for number in range(program.n_blocks):
        kind = program.kind_of_block(number)
        if kind not in costs:
            costs[kind] = OneBlock(program.with_block(number), workload, speeds, micro, tables).block(allow)
        blocks.append(costs[kind])
    rows = default_loss_rows(head_rows(program, workload, micro), scores_in_a_row(program), workload.itemsize)
    one = OneBlock(program.with_block(0) if program.n_blocks else program, workload, speeds, micro)
    choices = {rows}
    recompute = "recompute" in allow
    while recompute and rows > LEAST_LOSS_ROWS:
        rows = -(-rows // 2)
        choices.add(rows)
    ends = [one.ends(r) for r in sorted(choices, reverse=True)]
    return Chain(blocks, ends, recompute), ends[0]
