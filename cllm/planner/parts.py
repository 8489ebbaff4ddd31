"""Where a block may be cut into parts.

A block is cut where a single value passes from the steps before to those after, if only backward of the latter reads it.
Where that value is kept, no rebuild crosses the cut, and nothing but its gradient comes back.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from cllm.planner.region_costs import Decisions
from cllm.plans.tree import Recompute
from cllm.program.parts import Step, Value
from cllm.program.program import Program

INPUT = ("input", Recompute())
LONGEST = 8  # a part reaches from a cut to at most the eighth after it


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a block's steps from one cut to another, the cuts between them dropped.

    Attributes
    ----------
    steps : tuple of Step
    given, left : str
        The value that it reads from outside, and that which leaves it.
    start, stop : int
        Numbers of the cuts; 0 is the block's input.
    drops : tuple of tuple of str
        For each step that may be dropped, the names of its values: all are kept or none, since one rebuild makes them all.
    dropped : Decisions
        Of the cuts inside; of the block's input, where the steps before the blocks make it again.
    """

    steps: tuple[Step, ...]
    given: str
    left: str
    start: int
    stop: int
    drops: tuple[tuple[str, ...], ...]
    dropped: Decisions

    @property
    def makes_input(self) -> bool:
        """Whether the block's input is made again."""
        return INPUT in self.dropped

    def without_input(self) -> "Part":
        """The same part of the first block, its input dropped."""
        return replace(self, dropped=(INPUT, *self.dropped))

    def every(self) -> Iterator[Decisions]:
        """All ways to drop."""
        for chosen in product((False, True), repeat=len(self.drops)):
            yield self.dropping(chosen)

    def dropping(self, chosen: tuple[bool, ...]) -> Decisions:
        """The way that drops the chosen of `drops`."""
        return (*self.dropped, *((k, Recompute()) for keys, drop in zip(self.drops, chosen, strict=True) if drop for k in keys))


def whole_block(program: Program, block: int) -> Part:
    """A block as one part."""
    steps = program.regions[1][block]
    return _part(program, steps, [(0, program.block_inputs[block]), (len(steps), program.block_inputs[block + 1])], 0, 1)


def parts_of(program: Program, block: int, recompute: bool) -> list[Part]:
    """The parts of a block by where they begin: between neighbouring cuts and, where cuts may be dropped, between others."""
    steps = program.regions[1][block]
    cuts = [(0, program.block_inputs[block]), *_cuts(program, steps), (len(steps), program.block_inputs[block + 1])]
    found = []
    for start in range(len(cuts) - 1):
        for stop in range(start + 1, min(len(cuts), start + LONGEST + 1)):
            found.append(_part(program, steps, cuts, start, stop))
            if not recompute or program.values[cuts[stop][1]].role == "stream":
                break
    return found


def _cuts(program: Program, steps: tuple[Step, ...]) -> Iterator[tuple[int, str]]:
    """(steps before the cut, the value that passes it) inside a block."""
    last_reader = {value: i for i, step in enumerate(steps) for value in step.inputs.values()}
    alive = set(program._outside(steps))
    for count, step in enumerate(steps[:-1], 1):
        alive = {v for v in (*alive, step.output) if last_reader.get(v, -1) >= count}
        readers = program.readers[step.output]
        if alive == {step.output} and readers and all(r.index > step.index for r in readers):
            yield count, step.output


def _part(program: Program, steps: tuple[Step, ...], cuts: list[tuple[int, str]], start: int, stop: int) -> Part:
    inside = {value for _, value in cuts[start + 1:stop]}
    ends = cuts[stop][1]
    drops, dropped = [], []
    mine = steps[cuts[start][0]:cuts[stop][0]]
    for step in mine:
        keys = tuple(v.key for v in kept_values(program, step) if v.name not in program.passed_between and v.role != "stream")
        if step.output in inside:
            dropped += [(key, Recompute()) for key in keys]
        elif keys and (step.output != ends or ends in program.passed_between):
            drops.append(keys)
    return Part(mine, cuts[start][1], ends, start, stop, tuple(drops), tuple(dropped))


def kept_values(program: Program, step: Step) -> list[Value]:
    """The values of a step that are kept unless a plan says otherwise."""
    values = [program.values[v] for v in step.outputs.values()]
    return [v for v in values if program.readers[v.name] and not v.optional]
