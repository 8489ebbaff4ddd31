"""A model as a straight line of wired layers: `Step`, `Value`, `Program`, and the `Wiring` that makes one."""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cllm.declare import Flow, Layer, Table
from cllm.dims import resolve
from cllm.errors import DeclarationError


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


class Wiring:
    """Builds a `Program` line by line; what a model file uses."""

    def __init__(self):
        self._steps: list[Step] = []
        self._values: dict[str, Value] = {}
        self._parameters: dict[str, Parameter] = {}
        self._tables: dict[str, Constant] = {}
        self._block: int | None = None

    @contextmanager
    def block(self, number: int):
        """Steps added inside belong to block `number`, and their names begin with ``blocks.{number}.``"""
        self._block = number
        yield
        self._block = None

    def add(self, name: str, layer: Layer, letters: Mapping[str, int], params: Mapping[str, str] | None = None,
            **inputs: str) -> str:
        """Append a layer and return the name of its output value.

        Parameters
        ----------
        name : str
            Its name inside the block; parameters and tables are called ``name.param`` unless `params` names them
            otherwise.
        letters : dict
            The model's shape letters.
        **inputs : str
            For each input of the layer, the value that feeds it.
        """
        prefix = "" if self._block is None else f"blocks.{self._block}."
        full = prefix + name
        readable = all(v in self._values and self._steps[self._values[v].step].output == v for v in inputs.values())
        if set(inputs) != set(layer.inputs) or not readable:
            raise DeclarationError(full, f"needs the inputs {', '.join(layer.inputs) or 'none'}, outputs of earlier steps",
                                   str(inputs), "Wire each input to the output of a step added before.")
        if any(s.name == full for s in self._steps):
            raise DeclarationError(full, "names of steps must differ", "the name twice", "Choose another name.")
        mine = {**letters, **layer.letters}
        named = {p.name: (params or {}).get(p.name, f"{full}.{p.name}") for p in (*layer.params, *layer.tables)
                 if layer.has(p)}
        for param in filter(layer.has, layer.params):
            self._declare(self._parameters, Parameter(named[param.name], resolve(param.shape, mine), param.init,
                                                      getattr(layer, "std", 0.0)))
        for table in filter(layer.has, layer.tables):
            self._declare(self._tables, Constant(named[table.name], resolve(table.shape, mine), table, layer))
        local, constant = ({p.name: named[p.name] for p in kind if p.name in named}
                           for kind in (layer.params, layer.tables))
        outputs = {}
        for site in layer.sites:
            value = f"{full}.{site.name}"
            shape = " ".join(str(mine[p]) if p in layer.letters else p for p in site.shape.split())
            self._values[value] = Value(value, shape, site.dtype, len(self._steps), self._block, f"{name}.{site.name}",
                                        site.group or getattr(layer, "group", ""), site.optional, site.meaning)
            outputs[site.name] = value
        self._steps.append(Step(len(self._steps), full, layer, dict(inputs), outputs, local, constant, self._block))
        return outputs[layer.output]

    @staticmethod
    def _declare(known: dict, new: Parameter | Constant) -> None:
        first = known.setdefault(new.name, new)
        if first.shape != new.shape:
            raise DeclarationError(new.name, f"has the shape {first.shape} where it was named first", str(new.shape),
                                   "Share a parameter or table only between steps that agree on its shape.")

    def program(self) -> Program:
        """The finished program."""
        return Program(tuple(self._steps), self._values, self._parameters, self._tables)
