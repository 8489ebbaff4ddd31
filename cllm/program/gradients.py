"""Where gradients of values live: the backward steps of a program and the buffers they pass along.

A *cell* is a buffer for the gradient of one or more values. A layer whose gradient of an input is its output's gradient
unchanged (`passes`) shares the cell; one that may work in place (`overwrites`) reuses it; one that adds (`adds`) gets a
cell that already holds the other contributions. So the gradient of a whole residual stream is one buffer.

An input that a feed is wired to needs no gradient, nor does one below which nothing is trained, nor a parameter that is
frozen: a backward that makes nothing else is left out, and one that makes more, and does not spare it, writes it into a
cell that nobody reads.

Sharing is checked, not trusted: a cell carries a version that each write raises, and a gradient may only be read at the
version at which it was complete. Where sharing would break that, the share is undone and a copy is made instead.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from cllm.program.declare import Flow
from cllm.program.kinds import Kind
from cllm.program.parts import Step
from cllm.program.program import Program


@dataclass(frozen=True, slots=True)
class Cell:
    """A buffer for gradients: named after the value, feed or parameter whose gradient it held first, and by whom if not the
    first."""

    of: str
    by: str = ""

    @property
    def label(self) -> str:
        """In words: ``d(blocks.0.ln1.y)``."""
        return f"d({self.of})" + (f" of {self.by}" if self.by else "")


@dataclass(frozen=True, slots=True)
class GradientStep:
    """One move of backward: ``accumulate`` or ``backward`` of a step, or ``zero``, ``copy``, ``add`` on cells (``src``
    into ``dst``)."""

    kind: str
    step: Step
    reads: dict[str, Cell]
    writes: dict[str, Cell]


@dataclass(slots=True)
class _Cells:
    """Cells while they are wired: version of each, and (cell, version, who shared it) of each value's gradient."""

    version: dict[Cell, int] = field(default_factory=dict)
    held: dict[str, tuple[Cell, int, tuple | None]] = field(default_factory=dict)

    def fresh(self, value: str, step: Step) -> Cell:
        by = ""
        while Cell(value, by) in self.version:
            by += f" of {step.name}" if by else step.name
        self.version[Cell(value, by)] = 0
        return Cell(value, by)

    def complete(self, value: str) -> Cell:
        cell, version, shared_by = self.held[value]
        if self.version[cell] != version:
            raise _Stale(shared_by)
        return cell

    def join(self, value: str, dy: Cell | None, output: str) -> Cell:
        """The complete cell of a value, to be added to by a step that still reads its own `dy`."""
        cell = self.complete(value)
        if cell == dy:
            raise _Stale(self.held[value][2] or self.held[output][2])
        return cell

    def write(self, value: str, cell: Cell) -> None:
        self.version[cell] += 1
        shared_by = self.held[value][2] if value in self.held else None
        self.held[value] = (cell, self.version[cell], shared_by)

    def others_waiting(self, value: str, cell: Cell, before: int, program: Program) -> bool:
        return any(v != value and c == cell and n == self.version[cell] and program.values[v].step < before
                   for v, (c, n, _) in self.held.items())


class _Stale(Exception):
    def __init__(self, shared_by):
        super().__init__(shared_by)
        self.shared_by = shared_by


@lru_cache(maxsize=64)
def wire_gradients(program: Program) -> tuple[GradientStep, ...]:
    """The moves of backward in order, cells named; bits do not depend on which cells are shared."""
    private: set[tuple] = set()
    while True:
        try:
            return _attempt(program, private)
        except _Stale as stale:
            if stale.shared_by in private:
                raise AssertionError(f"the copy made for {stale.shared_by} did not help") from stale
            private.add(stale.shared_by)


def _attempt(program: Program, private: set[tuple]) -> tuple[GradientStep, ...]:
    cells = _Cells()
    moves: list[GradientStep] = []
    for step in reversed(program.steps):
        layer, takes_dy = step.layer, step is not program.steps[-1]
        if step.is_still and takes_dy:
            continue
        accumulate, backward = step.flow("accumulate"), step.flow("backward")
        dy = cells.complete(step.output) if takes_dy else None
        arrives = {"dy": dy} if takes_dy else {}
        if accumulate.exists:
            frozen = _for_nobody(cells, moves, step, accumulate)
            moves.append(GradientStep(Kind.ACCUMULATE, step, arrives, frozen))
        before, after, writes = [], [], {}
        for name, value in step.inputs.items():
            if name in step.unwanted:
                continue
            gradient, held = "d" + name, value in cells.held
            if gradient in layer.passed():
                if not held and (step.index, gradient) not in private:
                    cells.held[value] = (dy, cells.version[dy], (step.index, gradient))
                    continue
                target = cells.join(value, dy, step.output) if held else cells.fresh(value, step)
                after.append(GradientStep(Kind.ADD if held else Kind.COPY, step, {"src": dy}, {"dst": target}))
            elif gradient in layer.adds:
                target = cells.join(value, dy, step.output) if held else cells.fresh(value, step)
                if not held:
                    before.append(GradientStep(Kind.ZERO, step, {}, {"dst": target}))
                writes[gradient] = target
            elif held:
                target = cells.join(value, dy, step.output) if layer.passed() else cells.complete(value)
                part = cells.fresh(value, step)
                writes[gradient] = part
                after.append(GradientStep(Kind.ADD, step, {"src": part}, {"dst": target}))
            else:
                in_place = takes_dy and gradient in layer.overwrites and not layer.passed() and not cells.others_waiting(
                    step.output, dy, step.index, program)
                target = dy if in_place else cells.fresh(value, step)
                writes[gradient] = target
            cells.write(value, target)
        given = {**{n: v for n, v in step.inputs.items() if n in step.unwanted}, **step.feeds}
        fed = {"d" + name for name in layer.inputs if name in given}
        useful = set(backward.writes) - set(layer.passed()) - fed - {"d" + name for name in step.frozen} - {
            s.name for s in layer.scratch} or not takes_dy
        for gradient in sorted(fed & set(backward.writes)) if useful else ():
            writes[gradient] = cells.fresh(given[gradient[1:]], step)
            if gradient in layer.adds:
                before.append(GradientStep(Kind.ZERO, step, {}, {"dst": writes[gradient]}))
        moves += before
        if useful:
            writes |= _for_nobody(cells, moves, step, backward)
            moves.append(GradientStep(Kind.BACKWARD, step, arrives, writes))
        moves += after
        cells.held.pop(step.output, None)  # all that read it has been here
    return tuple(moves)


def _for_nobody(cells: _Cells, moves: list[GradientStep], step: Step, flow: Flow) -> dict[str, Cell]:
    """Cells, zeroed, for the gradients of frozen parameters that a method makes all the same."""
    found = {"d" + name: cells.fresh(step.params[name], step) for name in sorted(step.frozen)
             if "d" + name in flow.writes and name in step.params}
    moves += [GradientStep(Kind.ZERO, step, {}, {"dst": cell}) for cell in found.values()]
    return found
