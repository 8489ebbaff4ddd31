"""A model as a straight line of wired layers: `Step`, `Value`, `Parameter`, `Constant`, `Program`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cllm.errors import DeclarationError
from cllm.program.declare import Flow, Layer, Table


@dataclass(frozen=True, slots=True)
class Value:
    """What one step leaves at one site: ``blocks.3.ln1.y``."""

    name: str
    shape: str
    dtype: str | None
    step: int
    block: int | None
    key: str
    group: str
    optional: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class Step:
    """One layer in its place: which value feeds each input, which parameter or table each local name is."""

    index: int
    name: str
    layer: Layer
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    params: Mapping[str, str]
    tables: Mapping[str, str]
    block: int | None

    @property
    def output(self) -> str:
        """Name of the value that other steps read."""
        return self.outputs[self.layer.output]


@dataclass(frozen=True, slots=True)
class Parameter:
    """An array that training changes: name, lengths, how it starts, and whether weight decay applies."""

    name: str
    shape: tuple[int, ...]
    init: str | float
    std: float

    @property
    def decays(self) -> bool:
        """Weight decay applies to weights with two or more axes."""
        return self.name.endswith(".weight") and len(self.shape) > 1


@dataclass(frozen=True, slots=True)
class Constant:
    """An array that nothing changes: name, lengths, and the layer whose table it is."""

    name: str
    shape: tuple[int, ...]
    table: Table
    layer: Layer

    def values(self) -> np.ndarray:
        """Make it: a float64 array of that shape."""
        return self.table.make(self.layer)


class Program:
    """Steps in the order of forward, with everything that can be derived from them.

    Attributes
    ----------
    steps : tuple of Step
    values : dict of Value by name
    parameters : dict of Parameter by name
    tables : dict of Constant by name
    n_blocks : int
    """

    def __init__(self, steps: tuple[Step, ...], values: dict[str, Value], parameters: dict[str, Parameter],
                 tables: dict[str, Constant]):
        self.steps = steps
        self.values = values
        self.parameters = parameters
        self.tables = tables
        self.n_blocks = 1 + max((s.block for s in steps if s.block is not None), default=-1)
        self._check_regions()

    @cached_property
    def regions(self) -> tuple[tuple[Step, ...], tuple[tuple[Step, ...], ...], tuple[Step, ...]]:
        """Steps before the blocks, steps of each block, steps after them."""
        blocks = tuple(tuple(s for s in self.steps if s.block == b) for b in range(self.n_blocks))
        first = blocks[0][0].index if blocks else len(self.steps) - 1
        before = tuple(s for s in self.steps if s.block is None and s.index < first)
        after = tuple(s for s in self.steps if s.block is None and s.index >= first)
        return before, blocks, after

    @cached_property
    def block_inputs(self) -> tuple[str, ...]:
        """For each block, the one value from outside that it reads; last, the one that the end of the network reads."""
        return tuple(self._outside(region)[0] for region in (*self.regions[1], self.regions[2]))

    @cached_property
    def readers(self) -> dict[str, tuple[Step, ...]]:
        """For each value, the steps whose accumulate or backward reads it."""
        found: dict[str, dict[int, Step]] = {name: {} for name in self.values}
        for step in self.steps:
            for name in self.backward_values(step):
                found[name][step.index] = step
        return {name: tuple(steps.values()) for name, steps in found.items()}

    def backward_values(self, step: Step) -> tuple[str, ...]:
        """Names of the values that this step's accumulate and backward read, optional ones included."""
        return (*self.values_of(step, step.layer.accumulate_flow), *self.values_of(step, step.layer.backward_flow))

    @staticmethod
    def values_of(step: Step, flow: Flow) -> tuple[str, ...]:
        """Names of the values that one method of the step reads."""
        named = {**step.inputs, **step.outputs}
        return tuple(named[n] for n in flow.reads if n in named)

    @cached_property
    def waiting_steps(self) -> frozenset[int]:
        """Steps that add to a parameter gradient to which a later step (earlier in backward) adds as well."""
        seen: set[str] = set()
        waiting = set()
        for step in reversed(self.steps):
            mine = {p for n, p in step.params.items() if "d" + n in step.layer.parameter_gradients()}
            if mine & seen:
                waiting.add(step.index)
            seen |= mine
        return frozenset(waiting)

    def kind_of_block(self, block: int) -> tuple:
        """What makes two blocks cost the same: layers without their names, and how they are wired."""
        region = self.regions[1][block]
        place = {v: (i, site) for i, s in enumerate(region) for site, v in s.outputs.items()}
        return tuple((type(s.layer), tuple(s.layer.letters.items()), s.layer.passed(), tuple(sorted(s.params)),
                      tuple(place.get(v, "input") for v in s.inputs.values())) for s in region)

    def with_block(self, block: int) -> "Program":
        """The same program with one of its blocks only."""
        before, blocks, after = self.regions
        mine, following = self.block_inputs[block], self.block_inputs[-1]
        source = {mine: self.block_inputs[0], following: self.block_inputs[block + 1]}
        steps = (*before, *blocks[block], *after)
        number = {s.index: i for i, s in enumerate(steps)}
        rewired = tuple(replace(s, index=number[s.index], block=None if s.block is None else 0,
                                inputs={n: source.get(v, v) if s.block is not None or s in after else v
                                        for n, v in s.inputs.items()}) for s in steps)
        values = {v: replace(self.values[v], step=s.index, block=s.block) for s in rewired for v in s.outputs.values()}
        return Program(rewired, values, self.parameters, self.tables)

    def _outside(self, region: tuple[Step, ...]) -> list[str]:
        inside = {v for s in region for v in s.outputs.values()}
        return list(dict.fromkeys(v for s in region for v in s.inputs.values() if v not in inside))

    def _check_regions(self) -> None:
        before, blocks, after = self.regions
        order = [s.index for region in (before, *blocks, after) for s in region]
        if order != list(range(len(self.steps))):
            raise DeclarationError("Program", "blocks must follow one another without steps between them",
                                   str(order), "Wire steps outside blocks before the first or after the last one.")
        if not after or not after[-1].layer.evaluate_flow.exists:
            raise DeclarationError("Program", "the last step must be a head with an evaluate method",
                                   self.steps[-1].name if self.steps else "no steps", "Wire a loss after the blocks.")
        for number, region in enumerate((*blocks, after)):
            outside = self._outside(region)
            if len(outside) != 1:
                raise DeclarationError(f"Program block {number}", "must read exactly one value from outside",
                                       ", ".join(outside) or "none", "Pass it along the residual stream.")
        read = {v for s in self.steps for v in s.inputs.values()}
        for step in self.steps[:-1]:
            if step.output not in read:
                raise DeclarationError(step.name, "its output must be read by a later step", "a dead end",
                                       "Wire it to a reader or leave the step out.")
