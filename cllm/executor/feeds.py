"""What a step reads from outside, in arrays that bound calls hold: what it is fed, its loss, the key of dropout."""

from collections.abc import Mapping

import numpy as np

from cllm.arrays import digest_of
from cllm.executor.batches import checked_feeds, divisor_of, feed_checks
from cllm.program.declare import HANDED_ARRAYS
from cllm.program.dims import elements, resolve
from cllm.program.program import Program
from cllm.program.workload import Workload


def key_name(rows: str) -> str:
    """Under which name `Feeds` has the key for steps over such rows."""
    return "key" if rows == "N" else f"key of {rows}"


class Feeds:
    """The feeds of one executor, and what it hands in itself (`program.declare.HANDED_ARRAYS`).

    Parameters
    ----------
    program : Program
    workload : Workload
    micro_batch : int
        Sequences at a time.

    Attributes
    ----------
    part : dict of arrays by name
        Of the micro-batch under way, and what a step has one of.
    whole : dict of arrays by name
        The same with the feeds of the group under way: of the whole batch, unless it is cut into several.
    keys : dict of str by name
        What dropout draws from, an array for each kind of rows: what those are.
    """

    def __init__(self, program: Program, workload: Workload, micro_batch: int):
        self._program, self._workload, self._micro_batch = program, workload, micro_batch
        self._group, self._first = workload.group, 0  # and the first sequence of the one under way
        self._given: Mapping[str, np.ndarray] = {}  # of all groups, while a step goes over them
        handed = {name: np.zeros(resolve(shape, {}), dtype) for name, (shape, dtype) in HANDED_ARRAYS.items()}
        handed |= {key_name(rows): np.zeros_like(handed["key"]) for rows in program.kinds_of_rows}
        self.keys = {key_name(rows): rows for rows in ("N", *program.kinds_of_rows)}
        self._checks = feed_checks(program, workload)
        self._rows = {name: 1 if feed.shape.startswith("B") else workload.rows(1)  # of one sequence
                      for name, feed in program.feeds.items() if feed.is_cut}
        self._drawn = {name: elements(rows, workload.letters(1)) for name, rows in self.keys.items()}
        self.whole = {**handed, **{name: self._array(name, self._group.batch) for name in program.feeds}}
        self.part = {**self.whole, **{name: self._array(name, micro_batch) for name in self._rows}}
        read = {step.feeds[name] for step in program.steps for name in step.layer.forward_flow.reads if name in step.feeds}
        self._of_forward = [name for name in program.feeds if name in read]

    def take(self, given: Mapping, divisor: float | None = None) -> float:
        """Check a batch, which `begin` copies group by group, and return the divisor of its loss."""
        arrays = checked_feeds(self._checks, given, self._program.feeds)
        divisor = divisor_of(self._program, self._workload, arrays, divisor)
        self._given = arrays
        self.part["scale"][0] = 1.0 / divisor
        return divisor

    def take_inputs(self, given: Mapping) -> None:
        """Check what forward alone reads."""
        self._given = checked_feeds(self._checks, given, self._of_forward)

    def key(self, seed: int, step: int) -> None:
        """What dropout draws from in this step, beside the place of a micro-batch."""
        for name in self.keys:
            self.part[name][:2] = seed, step

    def begin(self, group: int) -> None:
        """Make a group the one under way, its loss zero."""
        self._first = group * self._group.batch
        for name, array in self._given.items():
            rows = self._rows.get(name)
            some = array if rows is None else array[self._first * rows:(self._first + self._group.batch) * rows]
            self.whole[name][...] = some
        self.part["loss"][0] = 0.0

    def digest(self) -> str:
        """Of the batch that was given."""
        return digest_of({name: np.asarray(array, self.whole[name].dtype) for name, array in self._given.items()})

    def end(self) -> None:
        """Hold what was given no longer."""
        self._given = {}

    def cuts(self) -> list[tuple[int, int]]:
        """The first sequence of each micro-batch of a group, and how many it has."""
        micro, batch = self._micro_batch, self._group.batch
        return [(start, min(micro, batch - start)) for start in range(0, batch, micro)]

    def place(self, start: int, size: int) -> None:
        """Make a micro-batch the one under way."""
        for name, rows in self._rows.items():
            self.part[name][:size * rows] = self.whole[name][start * rows:(start + size) * rows]
        for name, drawn in self._drawn.items():
            self.part[name][2] = (self._first + start) * drawn

    def of(self, size: int) -> dict[str, np.ndarray]:
        """`part` for a micro-batch of so many sequences."""
        return {**self.part, **{name: self.part[name][:size * rows] for name, rows in self._rows.items()}}

    def _array(self, name: str, batch: int) -> np.ndarray:
        feed = self._program.feeds[name]
        return np.zeros(resolve(feed.shape, self._workload.letters(batch)), feed.dtype or self._workload.dtype)
