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

from cllm.planner.block_costs import BlockCost, BlockCosts, EndCost
from cllm.planner.costs import Speeds
from cllm.planner.pairs import Pairs, Tapes, Ways, best_under
from cllm.plans.check import head_rows
from cllm.plans.plan import Plan
from cllm.plans.tree import Cache, Recompute, Segment, Tape
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.build import default_loss_rows, scores_in_a_row
from cllm.schedule.report import batch_bytes, gradient_bytes, optimizer_bytes, parameter_bytes, table_bytes

# Pairs kept of a set inside the recursion. Most networks of a dozen blocks stay below the first; on deep ones the second,
# and fewer lengths of segments, bound the time of planning.
MOST = 4000
MOST_DEEP = 200
DEEP = 24  # blocks
DEEP_LENGTHS = (1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256)  # of segments, in deep networks
LEAST_LOSS_ROWS = 16
MANY = 500  # blocks from which on planning takes seconds, and tells how far it is


class Chain:
    """The recursion over the blocks of one size of micro-batch."""

    def __init__(self, blocks: list[BlockCost], ends: list[EndCost], recompute: bool):
        self.blocks, self.ends, self.recompute = blocks, ends, recompute
        self.deep = len(blocks) > DEEP
        kinds = {id(b): n for n, b in enumerate(blocks)}
        self._kinds = "".join(chr(kinds[id(b)]) for b in blocks)  # slices of text are quick to make and to look up
        self._tapes: dict[tuple[str, int], tuple[Tapes, list[Ways]]] = {}
        self._segments: dict[tuple[str, int], list[Ways]] = {}
        self._opened: dict[str, Pairs] = {}
        count = len(ends)
        self._rests = [Pairs.best([(np.array([e.peak for e in ends], float), np.array([e.seconds for e in ends]),
                                    np.column_stack((np.arange(count), np.zeros((count, 2), int))))], MOST)]
        for start in reversed(range(len(blocks))):
            self._rests.append(self._list(start, len(blocks), self.rest, 0))

    @property
    def top(self) -> Pairs:
        """The whole chain's pairs."""
        return self._rests[-1]

    def rest(self, start: int) -> Pairs:
        """The pairs of what begins with that block."""
        return self._rests[len(self.blocks) - start]

    def _list(self, start: int, stop: int, rest: Callable[[int], Pairs], waiting: int) -> Pairs:
        """Lists of children from `start` on, followed by what `rest` says of the block after each."""
        tapes, ways = self._tapes_of(start, waiting)
        longest = stop - start - bool(waiting)  # in a segment the last child is no segment: opening it would be for nothing
        segments = [(ways, rest(start + n)) for n in self._lengths(longest)
                    for ways in self._segment(start, start + n, waiting)]
        if self.deep:
            return best_under(tapes, rest(start + 1), segments, MOST_DEEP)
        return Pairs.best([w.before(r) for w, r in (*((w, rest(start + 1)) for w in ways), *segments)], MOST)

    def _tapes_of(self, number: int, waiting: int) -> tuple[Tapes, list[Ways]]:
        """The tapes of a block whose forward runs while so many bytes wait, and the same by what they keep."""
        key = self._kinds[number], waiting
        if key not in self._tapes:
            kept, forward, backward, seconds = _columns(self.blocks[number])[:4]
            tapes = Tapes.best(kept, np.maximum(forward + waiting, backward), seconds)
            self._tapes[key] = tapes, [] if self.deep else tapes.ways()
        return self._tapes[key]

    def _segment(self, start: int, stop: int, waiting: int) -> list[Ways]:
        """The ways of a segment that is swept while so many bytes wait; of the first, those that make its input again, too:
        to tell them, the number of what is inside is less than 0."""
        key = self._kinds[start:stop], waiting
        if key not in self._segments:
            inside, block = self.opened(start, stop), self.blocks[start]
            others = [b.passing_peak for b in self.blocks[start + 1:stop]]
            seconds = sum(b.sweep_seconds for b in self.blocks[start:stop])
            ways = [(block.input_bytes, max(block.sweep_peak, block.input_bytes + max(others, default=0)) + waiting, seconds)]
            if block.again_seconds is not None:
                peak = max(max((block.passing_peak, *others)) + waiting, block.again_peak + self.blocks[stop - 1].output_bytes)
                ways.append((0, peak, seconds + block.again_seconds))
            self._segments[key] = []
            for kept, peak, seconds in ways:
                first = max(0, int(inside.peak.searchsorted(peak, "right")) - 1)  # the sweep hides those before
                number = np.arange(first, len(inside))
                self._segments[key].append(Ways(kept, np.maximum(inside.peak[first:], peak), inside.seconds[first:] + seconds,
                                                np.full(len(number), start - stop), number if kept else ~number))
        return self._segments[key]

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
                peak, seconds = _columns(self.blocks[start])[4:]
                made = np.column_stack((np.arange(len(peak)), np.zeros((len(peak), 2), int)))
                self._opened[kind] = Pairs.best([(peak, seconds, made)], MOST)
            else:
                self._opened[kind] = self._list(start, stop, lambda after: self.opened(after, stop),
                                                self.blocks[stop - 1].output_bytes)
        return self._opened[kind]

    def plan(self, index: int, micro_batch: int) -> Plan:
        """The plan of a pair of `top`."""
        children, start, pairs = [], 0, self.top
        while start < len(self.blocks):
            node, start, index = self._node(start, pairs.made[index])
            children.append(node)
            pairs = self.rest(start)
        return Plan(tuple(children), micro_batch, self.ends[int(pairs.made[index][0])].loss_rows)

    def _node(self, start: int, made) -> tuple[Tape | Segment, int, int]:
        choice, inside, rest = (int(n) for n in made)
        if choice >= 0:
            return Tape(start, self.blocks[start].tapes[choice].decisions), start + 1, rest
        kept = Cache() if inside >= 0 else Recompute()
        return Segment(self._inside(start, start - choice, max(inside, ~inside)), kept), start - choice, rest

    def _inside(self, start: int, stop: int, index: int) -> tuple[Tape | Segment, ...]:
        children = []
        while stop - start > 1:
            node, start, index = self._node(start, self.opened(start, stop).made[index])
            children.append(node)
        choice = int(self.opened(start, stop).made[index][0])
        return (*children, Tape(start, self.blocks[start].tapes[choice].decisions))


def _columns(block: BlockCost) -> np.ndarray:
    """Kept, forward peak, backward peak, seconds, last peak and last seconds of each tape."""
    return np.array([t.costs for t in block.tapes], float).T


class Frontier:
    """Plans of a workload, none beaten in bytes and seconds.

    Attributes
    ----------
    nbytes, seconds : arrays
        Total bytes before packing, rising, and seconds of a step, falling.

    Parameters
    ----------
    tell : callable
        Hears how far it is, where there are so many blocks that it takes a while.
    """

    def __init__(self, program: Program, workload: Workload, speeds: Speeds, allow: tuple[str, ...],
                 tell: Callable[[str], None] = lambda text: None):
        fixed = sum(of(program, workload) for of in (parameter_bytes, gradient_bytes, optimizer_bytes, table_bytes))
        update = speeds.update_seconds(program, workload)
        parts = []
        self._chains: list[tuple[int, Chain]] = []
        costs = BlockCosts(program, workload, speeds)
        cut = "micro_batch" in allow and program.can_be_cut
        sizes = micro_batches(workload.batch) if cut else (workload.batch,)
        for number, micro in enumerate(sizes, 1):
            if program.n_blocks >= MANY:
                tell(f"planning {program.n_blocks:,} blocks: micro-batch of {micro}, {number} of {len(sizes)}")
            chain, ends = _chain(costs, micro, allow)
            around = (ends, *chain.blocks)
            waiting, epilogue = sum(c.waiting_bytes for c in around), sum(c.epilogue_seconds for c in around)
            total = (np.maximum(chain.top.peak + ends.kept, ends.input_peak) + waiting + fixed
                     + batch_bytes(program, workload, micro))
            seconds = chain.top.seconds + epilogue + update
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


def _chain(costs: BlockCosts, micro: int, allow: tuple[str, ...]) -> tuple[Chain, EndCost]:
    program, workload = costs.program, costs.workload
    of_kind = {kind: costs.block(number, micro, allow) for kind, number in {k: n for n, k in enumerate(costs.kinds)}.items()}
    rows = default_loss_rows(head_rows(program, workload, micro), scores_in_a_row(program), workload.itemsize)
    choices = {rows}
    recompute = "recompute" in allow
    while recompute and rows > LEAST_LOSS_ROWS:
        rows = -(-rows // 2)
        choices.add(rows)
    ends = [costs.ends(micro, r) for r in sorted(choices, reverse=True)]
    blocks = [of_kind[kind] for kind in costs.kinds]
    if recompute and blocks:
        blocks[0] = costs.block(0, micro, allow, makes_input=True)
    return Chain(blocks, ends, recompute), ends[0]
