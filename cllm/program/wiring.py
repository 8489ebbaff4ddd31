"""`Wiring`, which builds a program line by line: what the file of a model uses."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from cllm.errors import DeclarationError
from cllm.program.declare import HANDED, Feed
from cllm.program.dims import joined, product, settle, with_rows
from cllm.program.layer import Layer
from cllm.program.parts import Constant, Parameter, Step, Value
from cllm.program.program import Program


class Wiring:
    """Builds a `Program`: `add` a layer for each step, `feed` what no layer declares, blocks inside `block`.

    Parameters
    ----------
    longest : int or None
        Time steps that a sequence may have at most.
    """

    def __init__(self, longest: int | None = None):
        self._longest = longest
        self._steps: list[Step] = []
        self._names: set[str] = set()
        self._values: dict[str, Value] = {}
        self._parameters: dict[str, Parameter] = {}
        self._tables: dict[str, Constant] = {}
        self._feeds: dict[str, Feed] = {}
        self._block: int | None = None

    @contextmanager
    def block(self, number: int) -> Iterator[None]:
        """Steps added inside belong to block `number`, and their names begin with ``blocks.{number}.``"""
        self._block = number
        yield
        self._block = None

    def feed(self, name: str, shape: str, dtype: str = "", low: float | None = None, high: float | None = None) -> str:
        """Declare what a step is fed, and return its name: it can be wired to any input that nobody differentiates.

        Parameters
        ----------
        name, shape, dtype, low, high : as of `Feed`
            The shape in B, T, N and numbers.
        """
        self._declare_feed(Feed(name, shape, dtype, low, high), {}, f"feed({name!r})")
        return name

    def add(self, step: str, layer: Layer, /, params: Mapping[str, str] | None = None, **inputs: str) -> str:
        """Append a layer and return the name of its output value.

        Parameters
        ----------
        step : str
            Its name inside the block; parameters and tables are called ``step.param`` unless `params` names them
            otherwise.
        layer : Layer
        params : dict of str by str
            Shared names of parameters, tables and feeds of the layer, by the names that it knows them by.
        **inputs : str
            For each input of the layer, the value, or the feed, that it reads.

        Raises
        ------
        DeclarationError
            When the step cannot be wired so; the message says where, what must hold, and what was got.
        """
        prefix = "" if self._block is None else f"blocks.{self._block}."
        full, params = prefix + step, dict(params or {})
        if not isinstance(layer, Layer):
            raise DeclarationError(full, "must be a cllm.Layer", type(layer).__name__, "Pass an instance of a layer class.")
        if full in self._names:
            raise DeclarationError(full, "names of steps must differ", "the name twice", "Choose another name.")
        own = layer.letters
        if strays := set(params) - {p.name for p in (*layer.params, *layer.tables)} - set(layer.fed):
            raise DeclarationError(full, "params may name its parameters, tables and feeds", ", ".join(sorted(strays)),
                                   "Check the spelling.")
        named = {p.name: params.get(p.name, f"{full}.{p.name}") for p in (*layer.params, *layer.tables) if layer.has(p)}
        for param in filter(layer.has, layer.params):
            self._declare(self._parameters, Parameter(named[param.name], _lengths(full, param.shape, own),
                                                      param.init(layer) if callable(param.init) else param.init,
                                                      getattr(layer, "std", 0.0)))
        for table in filter(layer.has, layer.tables):
            self._declare(self._tables, Constant(named[table.name], _lengths(full, table.shape, own), table, layer))
        local, constant = ({p.name: named[p.name] for p in kind if p.name in named}
                           for kind in (layer.params, layer.tables))
        axes, shapes = self._wired(full, layer, inputs)
        fed = {name: feed for name, feed in layer.fed.items() if layer.has(feed)}
        feeds = {name: params.get(name, feed.called or name) for name, feed in fed.items()}
        for name, feed in fed.items():
            shape = _settled(full, feed.shape, own)
            shape = shape if axes == "N" else joined(shape)
            self._declare_feed(replace(feed, name=feeds[name], shape=with_rows(shape, axes)), own, full)
            shapes[name] = with_rows(shape, product(axes))
        feeds |= {name: given for name, given in inputs.items() if given in self._feeds}
        values = {name: given for name, given in inputs.items() if given not in self._feeds}
        outputs = {}
        for site in layer.sites:
            value, shape = f"{full}.{site.name}", _settled(full, site.shape, own)
            self._values[value] = Value(value, with_rows(shape, axes), site.dtype, len(self._steps), self._block,
                                        f"{step}.{site.name}", site.group or getattr(layer, "group", ""), site.optional,
                                        site.meaning, site.role)
            outputs[site.name], shapes[site.name] = value, with_rows(shape, product(axes))
        self._steps.append(Step(len(self._steps), full, layer, values, outputs, local, constant, feeds, self._block, shapes,
                                product(axes)))
        self._names.add(full)
        return outputs[layer.output]

    def shape_of(self, name: str) -> str:
        """Shape of a value or feed that is there already, in B, T, N and numbers."""
        return (self._feeds.get(name) or self._values[name]).shape

    def program(self) -> Program:
        """The finished program."""
        return Program(tuple(self._steps), self._values, self._parameters, self._tables, self._feeds, self._longest)

    def _wired(self, where: str, layer: Layer, inputs: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """The axes that are the layer's rows, and its inputs' shapes as it sees them; inputs that are not those of the layer,
        that nothing made, or whose shape is another than declared are refused."""
        readable = all(v in self._feeds or v in self._values and self._steps[self._values[v].step].output == v
                       for v in inputs.values())
        if set(inputs) != set(layer.inputs) or not readable:
            raise DeclarationError(where, f"needs the inputs {', '.join(layer.inputs) or 'none'}, outputs of earlier steps "
                                   "or feeds", str(dict(inputs)), "Wire each input to the output of a step added before.")
        shapes = {name: self.shape_of(given) for name, given in inputs.items()}
        reads = {name: _settled(where, shape, layer.letters) for name, shape in layer.reads.items()}
        axes = self._rows(where, layer, reads, shapes)
        for name, shape in reads.items():
            must = with_rows(shape, axes)
            if joined(shapes[name]) != joined(must):
                raise DeclarationError(f"{where}, input {name}", f"must have the shape {layer.reads[name]}, which is ({must})",
                                       f"{inputs[name]} of shape ({shapes[name]})",
                                       "Wire another value, or make the layer for this shape.")
            shapes[name] = with_rows(shape, product(axes))
        return axes, shapes

    @staticmethod
    def _rows(where: str, layer: Layer, reads: Mapping[str, str], given: Mapping[str, str]) -> str:
        """The axes that stand before those which the layer declares for what it reads; N where its shapes speak of time steps
        or of a multiple of rows."""
        shapes = [*reads.values(), *(_settled(where, site.shape, layer.letters) for site in layer.sites)]
        if any(part[-1] in "NT" and part != "N" for shape in shapes for part in shape.split()):
            return "N"
        for name, shape in reads.items():
            first, *others = shape.split()
            before = joined(given[name]).split()[:-len(others) or None]
            if first == "N" and before and before[0] in ("B", "N"):
                return " ".join(before)
        return "N"

    def _declare_feed(self, feed: Feed, own: Mapping[str, int], where: str) -> None:
        high = own.get(feed.high) if isinstance(feed.high, str) else feed.high
        feed = Feed(feed.name, _settled(where, feed.shape, own), feed.dtype, feed.low, high, counts=feed.counts)
        if feed.name in HANDED or feed.name in self._values:
            raise DeclarationError(where, "a feed may not have the name of a value or of what the executor hands in",
                                   feed.name, "Choose another name.")
        if any(part in ("B", "N") for part in feed.shape.split()[1:]):
            raise DeclarationError(where, "the batch must be the first axis of a feed", feed.shape, "Turn the array.")
        first = self._feeds.setdefault(feed.name, feed)
        if (joined(first.shape), first.dtype) != (joined(feed.shape), feed.dtype):
            raise DeclarationError(f"{where}, feed {feed.name}", f"is ({first.shape}) {first.dtype} where it was named first",
                                   f"({feed.shape}) {feed.dtype}", "Name the feeds differently, through params.")
        bounds = [max, min]
        low, high = (pick(known) if (known := [b for b in pair if b is not None]) else None
                     for pick, pair in zip(bounds, ((first.low, feed.low), (first.high, feed.high)), strict=True))
        self._feeds[feed.name] = Feed(feed.name, first.shape, feed.dtype, low, high, counts=first.counts or feed.counts)

    @staticmethod
    def _declare(known: dict, new: Parameter | Constant) -> None:
        first = known.setdefault(new.name, new)
        if first.shape != new.shape:
            raise DeclarationError(new.name, f"has the shape {first.shape} where it was named first", str(new.shape),
                                   "Share a parameter or table only between steps that agree on its shape.")


def _settled(where: str, shape: str, own: Mapping[str, int]) -> str:
    try:
        return settle(shape, own)
    except ValueError as error:
        raise DeclarationError(where, "shapes are made of B, T, N, R and the layer's own letters", str(error),
                               "Give the layer a field of that letter.") from error


def _lengths(where: str, shape: str, own: Mapping[str, int]) -> tuple[int, ...]:
    """Lengths of an array that the batch does not change."""
    settled = _settled(where, shape, own).split()
    if not all(part.isdecimal() for part in settled):
        raise DeclarationError(where, "shapes of parameters and tables are made of numbers and the layer's own letters",
                               shape, "What grows with the batch is a site, or a feed.")
    return tuple(int(part) for part in settled)
