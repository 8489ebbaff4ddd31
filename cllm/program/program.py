"""A model as a straight line of wired layers: `Program`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cached_property

import numpy as np

from cllm.errors import DeclarationError
from cllm.locate import module_of
from cllm.program.declare import Feed, Flow
from cllm.program.dims import NARROW
from cllm.program.parts import Constant, Parameter, Step, Value


def plain(value):
    """A layer, or a setting of one, as plain data that is the same in every process.

    Raises
    ------
    DeclarationError
        When it holds what has no such form.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Enum):
        return [type(value).__qualname__, value.name]
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        return [f"{module_of(kind)}.{kind.__qualname__}", {f.name: plain(getattr(value, f.name)) for f in fields(value)}]
    if callable(value) and "<" not in getattr(value, "__qualname__", "<"):
        return f"{module_of(value)}.{value.__qualname__}"
    raise DeclarationError("a layer's field", "must be a number, text, named function, or a tuple or frozen dataclass of these",
                           repr(value), "Keep arrays out of a layer: declare a Table or a Param, or feed them.")


class Program:
    """Steps in the order of forward, with everything that can be derived from them.

    Attributes
    ----------
    steps : tuple of Step
    values : dict of Value by name
    parameters : dict of Parameter by name
    tables : dict of Constant by name
    feeds : dict of Feed by name
        What a step is fed; own letters are numbers.
    longest : int or None
        Time steps that a sequence may have at most.
    n_blocks : int

    Parameters
    ----------
    waiting : set of int or None
        Indices of `waiting_steps`, where the program is a part of another that knows; None derives them.
    """

    def __init__(self, steps: tuple[Step, ...], values: dict[str, Value], parameters: dict[str, Parameter],
                 tables: dict[str, Constant], feeds: dict[str, Feed], longest: int | None = None,
                 waiting: frozenset[int] | None = None):
        self._waiting = waiting
        self.steps = steps
        self.values = values
        self.parameters = parameters
        self.tables = tables
        self.feeds = feeds
        self.longest = longest
        self.n_blocks = 1 + max((s.block for s in steps if s.block is not None), default=-1)
        self._check_regions()

    @property
    def head(self) -> Step:
        """The last step, which ends in the loss."""
        return self.steps[-1]

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids; None where no tokens are fed, or any may be."""
        return self.feeds["tokens"].high if "tokens" in self.feeds else None

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that are not trained."""
        return frozenset(s.params[name] for s in self.steps for name in s.frozen if name in s.params)

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Names of the parameters that are trained: that have gradients, and state of an optimizer."""
        return tuple(name for name in self.parameters if name not in self.frozen)

    @cached_property
    def unwanted(self) -> frozenset[str]:
        """Values whose gradient nobody wants, since nothing is trained below them."""
        return frozenset(s.inputs[name] for s in self.steps for name in s.unwanted if name in s.inputs)

    @cached_property
    def has_time(self) -> bool:
        """Whether sequences have time steps: whether T occurs in a shape."""
        shapes = [*(f.shape for f in self.feeds.values()), *(shape for s in self.steps for shape in s.shapes.values())]
        return any(part.lstrip("0123456789") == "T" for shape in shapes for part in shape.split())

    @cached_property
    def kinds_of_rows(self) -> tuple[str, ...]:
        """What steps take for rows where it is not N, and B where there are values without time steps in a model with them:
        of each, the first in the whole batch has another number."""
        kinds = {s.rows for s in self.steps} - {"N"}
        if self.has_time and any(not set("NT") & set(v.shape) for v in self.values.values()):
            kinds.add("B")
        return tuple(sorted(kinds))

    @cached_property
    def sums_in_order(self) -> bool:
        """Whether bits of loss and gradients do not depend on how a batch is cut: whether every layer says so."""
        return all(step.sums_in_order for step in self.steps)

    @cached_property
    def digest(self) -> str:
        """What makes two programs the same, in 16 hexadecimal digits: layers, their fields, wiring, what is frozen, how that
        is stored."""
        what = [[plain(s.layer), s.name, s.block, *(sorted(named.items()) for named in (s.inputs, s.params, s.tables, s.feeds))]
                for s in self.steps]
        what += [[f.name, f.shape, f.dtype, str(f.low), str(f.high)] for f in self.feeds.values()]
        what += [["frozen", *sorted(self.frozen)]] if self.frozen else []
        what += [["stored", p.name, *map(list, p.stored.pieces)] for p in self.parameters.values() if p.stored is not None]
        what += [[v.name, v.dtype] for v in self.values.values() if v.dtype == NARROW]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    @cached_property
    def regions(self) -> tuple[tuple[Step, ...], tuple[tuple[Step, ...], ...], tuple[Step, ...]]:
        """Steps before the blocks, steps of each block, steps after them."""
        found: list[list[Step]] = [[] for _ in range(self.n_blocks)]
        for step in self.steps:
            if step.block is not None:
                found[step.block].append(step)
        blocks = tuple(map(tuple, found))
        first = blocks[0][0].index if blocks else len(self.steps) - 1
        before = tuple(s for s in self.steps if s.block is None and s.index < first)
        after = tuple(s for s in self.steps if s.block is None and s.index >= first)
        return before, blocks, after

    @cached_property
    def block_inputs(self) -> tuple[str, ...]:
        """For each block, the one value from outside that it reads; last, the one that the end of the network reads."""
        return tuple(self._outside(region)[0] for region in (*self.regions[1], self.regions[2]))

    @cached_property
    def passed_between(self) -> frozenset[str]:
        """The `block_inputs`, to be looked up: they are kept or dropped by the tree of segments, not by a decision."""
        return frozenset(self.block_inputs)

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
        return (*self.values_of(step, step.flow("accumulate")), *self.values_of(step, step.flow("backward")))

    @staticmethod
    def values_of(step: Step, flow: Flow) -> tuple[str, ...]:
        """Names of the values that one method of the step reads."""
        named = {**step.inputs, **step.outputs}
        return tuple(named[n] for n in flow.reads if n in named)

    @cached_property
    def waiting_steps(self) -> frozenset[int]:
        """Steps that add to a parameter gradient to which a later step (earlier in backward) adds as well."""
        if self._waiting is not None:
            return self._waiting
        seen: set[str] = set()
        waiting = set()
        for step in reversed(self.steps):
            mine = {p for n, p in step.params.items() if n in step.trains}
            if mine & seen:
                waiting.add(step.index)
            seen |= mine
        return frozenset(waiting)

    @staticmethod
    def needs_to_wait(step: Step) -> set[str]:
        """What a step's accumulate reads beside its dy and feeds, which alone are there in the epilogue."""
        return {*step.flow("accumulate").reads} - {"dy"} - {*step.feeds} - {*step.layer.fed}

    @property
    def can_be_cut(self) -> bool:
        """Whether all steps that wait could do so: where not, the batch cannot be cut into micro-batches."""
        return not any(self.needs_to_wait(self.steps[i]) for i in self.waiting_steps)

    def kind_of_block(self, block: int) -> tuple:
        """What makes two blocks cost the same and plans of one fit the other."""
        return self.kind_of(self.regions[1][block])

    def kind_of(self, steps: tuple[Step, ...]) -> tuple:
        """The same of any run of steps: layers with every field that matters to cost, the shapes of what they are handed, names
        of values inside the block, how all are wired, and what comes in from outside."""
        place = {v: (i, site) for i, s in enumerate(steps) for site, v in s.outputs.items()}

        def source(value: str) -> tuple:
            return place.get(value) or ("outside", self.values[value].shape, self.values[value].dtype)

        return tuple((type(s.layer), s.layer.cost_fields, s.rows, tuple(s.shapes.items()), s.layer.passed(),
                      tuple(sorted(s.params)), tuple((self.values[v].key, self.values[v].dtype) for v in s.outputs.values()),
                      s.index in self.waiting_steps, s.frozen, s.unwanted,
                      tuple(source(v) for v in s.inputs.values())) for s in steps)

    def with_blocks(self, chosen: Sequence[int]) -> "Program":
        """The same program with some of its blocks only, in that order, and with what they need."""
        before, blocks, after = self.regions
        steps = (*before, *(s for block in chosen for s in blocks[block]), *after)
        number = {s.index: i for i, s in enumerate(steps)}
        entries = self.block_inputs
        leaves = entries[0]
        source: dict[int | None, dict[str, str]] = {}
        for block in chosen:
            source[block] = {entries[block]: leaves}
            leaves = entries[block + 1]
        source[None] = {entries[-1]: leaves} if chosen else {}
        place = {block: i for i, block in enumerate(chosen)}
        rewired = tuple(replace(s, index=number[s.index], block=None if s.block is None else place[s.block],
                                inputs={n: v if s in before else source[s.block].get(v, v) for n, v in s.inputs.items()})
                        for s in steps)
        values = {v: replace(self.values[v], step=s.index, block=s.block) for s in rewired for v in s.outputs.values()}
        parameters, tables, feeds = ({name for s in rewired for name in named(s).values()} for named in (
            lambda s: s.params, lambda s: s.tables, lambda s: s.feeds))
        return Program(rewired, values, {n: p for n, p in self.parameters.items() if n in parameters},
                       {n: t for n, t in self.tables.items() if n in tables},
                       {n: f for n, f in self.feeds.items() if n in feeds}, self.longest)

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
