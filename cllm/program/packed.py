"""A program whose sequences hold several documents each: the same steps, and one more feed, `positions`.

Positions count from 0 in each document. A layer with a field ``packed`` heeds them: what it looks up by position it looks up
by these, and no row sees another document. A layer that knows nothing of positions stays as it is.
"""

from collections.abc import Collection
from dataclasses import fields, replace
from functools import lru_cache

from cllm.errors import DeclarationError
from cllm.program.declare import Feed
from cllm.program.layer import Layer
from cllm.program.parts import Step
from cllm.program.program import Program

POSITIONS = "positions"


@lru_cache(maxsize=64)
def packed(program: Program) -> Program:
    """The program for packed rows; its parameters, tables and values are those of the program.

    Raises
    ------
    DeclarationError
        When the program has no time steps, or a layer looks across them or at their places and has no packed form.
    """
    if not program.has_time:
        raise DeclarationError("packed", "needs a model with time steps", "one without", "Leave packed out.")
    steps = tuple(_packed(step) for step in program.steps)
    bounds = [step.layer.letters.get(feed.high) for step in steps for feed in _positions_of(step.layer)]
    high = min([program.longest, *bounds], key=lambda n: (n is None, n))
    feeds = {**program.feeds, POSITIONS: Feed(POSITIONS, "B T", "int32", 0, high, counts=True)}
    return Program(steps, program.values, program.parameters, program.tables, feeds, program.longest)


def fed_by(program: Program, names: Collection[str]) -> Program:
    """The program that takes feeds of these names: the packed one where positions are among them."""
    return packed(program) if POSITIONS in names and POSITIONS not in program.feeds else program


def _packed(step: Step) -> Step:
    layer = step.layer
    if "packed" in {field.name for field in fields(layer)}:
        layer = replace(layer, packed=True)
        mine = _positions_of(layer)
        return replace(step, layer=layer, feeds={**step.feeds, **{feed.name: POSITIONS for feed in mine}},
                       shapes={**step.shapes, **{feed.name: feed.shape for feed in mine}})
    if layer.across or any(layer.has(p) for p in (*layer.params, *layer.tables) if p.by_position):
        raise DeclarationError(step.name, "must have a packed form: it looks across positions, or at them",
                               f"{type(layer).__name__} without a field `packed`",
                               "Leave packed out, or give the layer the field and the feed `positions`.")
    return step


def _positions_of(layer: Layer) -> list[Feed]:
    """What the layer reads the positions by: one feed, or none."""
    return [feed for feed in layer.fed.values() if POSITIONS in (feed.name, feed.called) and layer.has(feed)]
