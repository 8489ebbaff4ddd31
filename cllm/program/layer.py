"""`Layer`: what a layer is, read off its methods.

A layer is a frozen dataclass with methods whose *signatures are the data flow*: parameters before the bare ``*`` are
read, parameters after it are written. ``forward`` makes the sites; ``accumulate`` adds to the gradients of parameters;
``backward``, run after it, makes the gradients of inputs. (A layer that makes both in one pass does so in ``backward``.
Where they are apart, what only ``accumulate`` reads is freed before ``backward`` needs room.) Names mean what they say:

* a site's, parameter's, table's or feed's own name, or one of `HANDED`, is that array; any other name that forward reads
  is an input;
* ``d`` + name is the gradient of that input, output or parameter. The output is the layer's first site, its
  gradient ``dy``. Gradients of parameters are always added to, never overwritten.

What a method reads it is given read-only. Everything else (what backward keeps alive, what a rebuild needs, what can be
dropped) is derived from the signatures, so a value that backward reads and nobody declared does not make a layer: the
class is refused when it is created.
"""

import sys
from abc import ABC
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import ClassVar

from cllm.errors import DeclarationError
from cllm.program.declare import HANDED, STANDARD_FEEDS, Feed, Flow, Param, Scratch, Site, Table
from cllm.program.dims import BATCH_LETTERS, COMPUTES


class Layer(ABC):
    """Base of all layers: a subclass is a frozen dataclass whose whole-number fields in capitals are shape letters.

    Class attributes
    ----------------
    sites, params, tables, scratch, feeds : tuples of `Site`, `Param`, `Table`, `Scratch`, `Feed`
    reads : dict of shape in letters by name of an input
        Checked when the layer is wired; an input that is not named is accepted as wired. N takes whatever rows there are:
        "N C" can be wired to "B C" or "B 16 C" (unless the layer's shapes name T), and "B T C" to "N C". Methods are handed
        arrays of the shapes that are declared here and in the sites.
    across : bool
        Forward looks across the positions of a sequence.
    in_order : bool or None
        Gradients of parameters and the loss add rows one after the other, in order, starting from what the buffer holds,
        so that their bits do not depend on how the batch is cut (`cllm.testing.check_layer` proves it). None is unsaid.
    in_nats : bool
        For a layer that ends the network: the loss is a mean of -log p, whose exponential is a perplexity.
    adds : names of input gradients that backward adds to instead of writing
    passes : names of input gradients that are the output's gradient unchanged; backward does not get them, and they
        share its buffer
    overwrites : names of input gradients that backward may write over the output's gradient
    spares : dict of tuple of names by gradient
        Gradients that a method leaves out where it is handed None for them, as for a parameter that is frozen or an input
        below which nothing is trained; and what it reads for them alone. Others are made for nobody, in the arena.
    narrow : names of inputs and sites that may be bfloat16 arrays
        Where a model computes in bfloat16 (`cllm.program.computing`), a site that is named is one if every layer that
        reads it names it too. Such an array is uint16, the upper halves of float32, for kernels that take either.
    costless : names of fields that change neither seconds nor bytes, such as the number of a dropout mask; layers that
        differ in any other cost each their own

    Methods
    -------
    forward, accumulate, backward : see the module's text
    evaluate : only for a layer that ends the network: adds to ``loss`` without making gradients
    divisor : for a layer that ends the network, what the summed loss is divided by, from feeds of the whole batch that it
        names; without it the targets that are not -1 are counted, or where there are none, sequences
    start, extend : for a layer that looks `across`, its step-by-step form, for sampling: ``start(room, dtype)`` makes what
        it remembers, ``extend(state, position, ...)`` reads inputs and feeds as forward does, of the new rows of one sequence
        alone, and returns their output
    """

    sites: ClassVar[tuple[Site, ...]] = ()
    params: ClassVar[tuple[Param, ...]] = ()
    tables: ClassVar[tuple[Table, ...]] = ()
    scratch: ClassVar[tuple[Scratch, ...]] = ()
    feeds: ClassVar[tuple[Feed, ...]] = ()
    reads: ClassVar[Mapping[str, str]] = {}
    across: ClassVar[bool] = False
    in_order: ClassVar[bool | None] = None
    in_nats: ClassVar[bool] = False
    adds: ClassVar[tuple[str, ...]] = ()
    overwrites: ClassVar[tuple[str, ...]] = ()
    passes: ClassVar[tuple[str, ...]] = ()
    spares: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    narrow: ClassVar[tuple[str, ...]] = ()
    costless: ClassVar[tuple[str, ...]] = ()

    forward_flow: ClassVar[Flow]
    accumulate_flow: ClassVar[Flow]
    backward_flow: ClassVar[Flow]
    evaluate_flow: ClassVar[Flow]
    divisor_flow: ClassVar[Flow]
    inputs: ClassVar[tuple[str, ...]]
    fed: ClassVar[Mapping[str, Feed]]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.forward_flow = Flow.of(getattr(cls, "forward", None))
        cls.accumulate_flow = Flow.of(getattr(cls, "accumulate", None))
        cls.backward_flow = Flow.of(getattr(cls, "backward", None))
        cls.evaluate_flow = Flow.of(getattr(cls, "evaluate", None))
        cls.divisor_flow = Flow.of(getattr(cls, "divisor", None))
        own = {p.name for p in (*cls.params, *cls.tables)}
        named = [n for flow in (cls.forward_flow, cls.accumulate_flow, cls.backward_flow, cls.evaluate_flow,
                                           cls.divisor_flow) for n in flow.reads]
        declared = {feed.name: feed for feed in cls.feeds}
        standard = {n: STANDARD_FEEDS[n] for n in named if n in STANDARD_FEEDS and n not in own}
        cls.fed = {**standard, **declared}
        cls.inputs = tuple(n for n in cls.forward_flow.reads if n not in own and n not in HANDED and n not in cls.fed)
        _check_declaration(cls)

    @property
    def letters(self) -> dict[str, int]:
        """The layer's own shape letters: its fields with a one-letter capital name."""
        return {name: int(getattr(self, name)) for name in self.__dataclass_fields__ if len(name) == 1 and name.isupper()}

    @property
    def cost_fields(self) -> tuple[tuple[str, object], ...]:
        """Names and values of the fields that may change what the layer costs: all but the `costless`."""
        return tuple((f.name, getattr(self, f.name)) for f in fields(self) if f.name not in self.costless)

    @property
    def output(self) -> str:
        """Name of the site that other layers read."""
        return self.sites[0].name

    def computing(self, compute: str) -> "Layer":
        """The layer that takes its products in `compute`: where it has a field of that name that says one of them."""
        return replace(self, compute=compute) if getattr(self, "compute", None) in COMPUTES else self

    def has(self, param: Param | Table | Feed) -> bool:
        """Whether this instance has that parameter, table or feed."""
        return param.when is None or bool(getattr(self, param.when))

    def held_rows(self, param: Param) -> slice:
        """The rows of a parameter that the layer holds constant; ``slice(0)`` for none."""
        if not isinstance(param.constant, str):
            return slice(None) if param.constant else slice(0)
        row = getattr(self, param.constant)
        return slice(0) if row is None else slice(row, row + 1)

    def passed(self) -> tuple[str, ...]:
        """The names of `passes` for this instance; a layer whose settings change them overrides this."""
        return self.passes

    def forward_flops(self, letters: Mapping[str, int]) -> float:
        """Floating-point operations of forward beyond a few per element; 0 where memory bounds the layer."""
        return 0.0

    def accumulate_flops(self, letters: Mapping[str, int]) -> float:
        """The same for accumulate."""
        return self.forward_flops(letters)

    def backward_flops(self, letters: Mapping[str, int]) -> float:
        """The same for backward."""
        return self.forward_flops(letters)

    def spared_flops(self, gradient: str, letters: Mapping[str, int]) -> float:
        """What accumulate or backward has less to do where it leaves one of `spares` out."""
        return 0.0

    def extra_bytes(self, method: str, letters: Mapping[str, int]) -> float:
        """Bytes that a method moves beyond what it reads and writes once."""
        return 0.0

    @property
    def sums_in_order(self) -> bool:
        """Whether a cut of the batch can change no bit: nothing is summed over rows, or it is `in_order`."""
        return bool(self.in_order) or not (self.parameter_gradients() or self.evaluate_flow.exists)

    def parameter_gradients(self) -> frozenset[str]:
        """Names of the gradients of parameters that the layer adds to."""
        written = {*self.accumulate_flow.writes, *self.backward_flow.writes}
        return frozenset({"d" + p.name for p in self.params} & written)


def _annotated(cls: type) -> Collection[str]:
    """Names that the class itself annotates; from Python 3.14 on they are not looked up before somebody asks."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    return cls.__dict__.get("__annotations__", ())


def _check_declaration(cls) -> None:
    """Refuse a layer whose signatures name what nobody declared, or that leaves declared things unwritten."""

    def refuse(what: str, must: str, got) -> None:
        raise DeclarationError(f"{cls.__name__}.{what}", must, ", ".join(sorted(got)),
                               "Declare the value as a Site, Param or Scratch, or take the name out of the signature.")

    sites = {s.name for s in cls.sites}
    params = {p.name for p in cls.params}
    tables = {t.name for t in cls.tables}
    scratch = {s.name for s in cls.scratch}
    forward, accumulate, backward = cls.forward_flow, cls.accumulate_flow, cls.backward_flow
    read = {*forward.reads, *accumulate.reads, *backward.reads}
    letters = set(_annotated(cls)) & set(BATCH_LETTERS)
    if taken := letters | {*sites, *params, *tables, *scratch} & set(HANDED):
        refuse("declaration", f"{', '.join((*HANDED, *BATCH_LETTERS))} have a meaning of their own", taken)
    if stray := set(cls.reads) - set(cls.inputs):
        refuse("reads", f"shapes can be declared for its inputs: {', '.join(cls.inputs) or 'none'}", stray)
    if not cls.sites or not forward.exists:
        refuse("forward", "a layer has a forward and at least one site, its output", {"neither"})
    if unwritten := sites - set(forward.writes):
        refuse("forward", "every site must be written, after the bare *", unwritten)
    if stray := set(forward.writes) - sites - scratch:
        refuse("forward", "only declared sites and scratch may be written", stray)
    if missing := (params | tables) - read:
        refuse("forward", "every parameter and table must be read, here or in backward", missing)
    gradients = {"d" + n for n in cls.inputs}
    readable = set(cls.inputs) | sites | params | tables | set(HANDED) | set(cls.fed) | {"dy"}
    for method, flow in (("accumulate", accumulate), ("backward", backward)):
        if stray := set(flow.reads) - readable:
            refuse(method, "it may read inputs, sites, parameters, tables, feeds and dy only", stray)
    if stray := set(accumulate.writes) - {"d" + p for p in params} - scratch:
        refuse("accumulate", "it may write gradients of parameters and scratch only", stray)
    if stray := set(backward.writes) - gradients - {"d" + p for p in params} - scratch - {"loss"}:
        refuse("backward", "it may write gradients of inputs and parameters, scratch and loss only", stray)
    if stray := set(cls.divisor_flow.reads) - set(cls.fed):
        refuse("divisor", "it may read feeds only", stray)
    trained = {"d" + p.name for p in cls.params if p.constant is not True}
    if (backward.exists or accumulate.exists) and (forgotten := trained - {*accumulate.writes, *backward.writes}):
        refuse("backward", "the gradient of every parameter must be added to, or its Param say constant=True", forgotten)
    if twice := set(backward.writes) & set(accumulate.writes) - scratch:
        refuse("backward", "a gradient is made by accumulate or by backward, not by both", twice)
    if missing := gradients - set(backward.writes) - set(cls.passes):
        refuse("backward", "the gradient of every input must be written, or passed", missing)
    if stray := (set(cls.adds) | set(cls.overwrites)) - set(backward.writes):
        refuse("backward", "gradients that are added to or may overwrite dy must be written", stray)
    differentiated = {"d" + p for p in params} | gradients
    if stray := set(cls.spares) - (differentiated & {*accumulate.writes, *backward.writes}):
        refuse("spares", "only gradients that accumulate or backward writes can be left out", stray)
    if stray := {n for names in cls.spares.values() for n in names} - {*accumulate.reads, *backward.reads}:
        refuse("spares", "only what accumulate or backward reads can be left out with them", stray)
    if stray := set(cls.narrow) - set(cls.inputs) - {s.name for s in cls.sites if s.dtype is None}:
        refuse("narrow", "only inputs and sites of the workload's dtype can be named", stray)
    if stray := set(cls.passes) - gradients:
        refuse("passes", "only gradients of inputs can be passed", stray)
    if stray := set(cls.costless) - {name for c in cls.__mro__ for name in _annotated(c)}:
        refuse("costless", "only fields can be named", stray)
