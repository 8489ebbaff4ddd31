"""Parts of a program as programs of their own, in which they cost what they cost in the whole.

Where a single value passes from one run of steps to the next, neither knows more of the other than that value and its
gradient. So a run of steps may stand alone between a step that gives the value and one that takes its result; and what
stands before and after the blocks may stand with one step in place of all of them. None of the stand-ins ever runs: such
programs are scheduled, and read.
"""

from dataclasses import dataclass, replace

from cllm.program.declare import Site
from cllm.program.layer import Layer
from cllm.program.parts import Step, Value
from cllm.program.program import Program


@dataclass(frozen=True, slots=True)
class Between(Layer):
    """Stands for all blocks."""

    sites = (Site("y", "1", "what the last block leaves"),)

    def forward(self, x, *, y):
        raise NotImplementedError

    def backward(self, dy, *, dx):
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Reading(Layer):
    """The same, for blocks whose backward reads what the first of them is given."""

    sites = (Site("y", "1", "what the last block leaves"),)

    def forward(self, x, *, y):
        raise NotImplementedError

    def backward(self, dy, x, *, dx):
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Sink(Layer):
    """Stands for all that follows."""

    sites = (Site("nothing", "1", "nothing", optional=True),)

    def forward(self, x, *, nothing):
        raise NotImplementedError

    def evaluate(self, x, *, loss):
        raise NotImplementedError

    def backward(self, x, *, dx):
        raise NotImplementedError


STAND_IN = -1  # index of a step that the whole does not have
NOTHING = Value("sink.nothing", "1", None, 0, None, "sink.nothing", "", True, "nothing")


def alone(program: Program, steps: tuple[Step, ...], given: str, left: str, before: tuple[Step, ...] = ()) -> Program:
    """Some steps of a block as the only block, `given` the one value that they read and `left` the one that others read.

    The step before them has the layer that makes `given`, so that copies of it cost what they do, and no inputs. Where `given`
    may be made again, the steps `before` stand there as they are.
    """
    maker = program.steps[program.values[given].step]
    source = replace(maker, index=STAND_IN, name="source", inputs={}, outputs={maker.layer.output: given}, params={}, tables={},
                     feeds={}, block=None)
    sink = _stand_in("sink", Sink(), {"x": left}, {"nothing": "sink.nothing"}, None)
    return _program(program, (*(before or (source,)), *(replace(s, block=0) for s in steps), sink))


def without_blocks(program: Program, reading: bool = False) -> Program:
    """What stands before and after the blocks, with a step between that stands for them, `reading` its input in backward; the
    program itself if it has none."""
    if not program.n_blocks:
        return program
    before, _, after = program.regions
    first, last = program.block_inputs[0], program.block_inputs[-1]
    between = _stand_in("blocks", Reading() if reading else Between(), {"x": first}, {"y": last}, 0)
    if last in program.unwanted and not reading:
        between = replace(between, unwanted=frozenset({"x"}))
    return _program(program, (*before, between, *after))


def _stand_in(name: str, layer: Layer, inputs: dict[str, str], outputs: dict[str, str], block: int | None) -> Step:
    return Step(STAND_IN, name, layer, inputs, outputs, {}, {}, {}, block, {})


def _program(whole: Program, steps: tuple[Step, ...]) -> Program:
    """Those steps, numbered anew, with values as they are in the whole."""
    numbered = tuple(replace(s, index=i) for i, s in enumerate(steps))
    values = {v: replace(whole.values.get(v, NOTHING), step=s.index, block=s.block)
              for s in numbered for v in s.outputs.values()}
    waiting = frozenset(i for i, s in enumerate(steps) if s.index in whole.waiting_steps)
    return Program(numbered, values, whole.parameters, whole.tables, whole.feeds, whole.longest, waiting)
