"""`check_layer`: what a layer promises, proved on small drawn arrays; each failure says what to mend."""

from dataclasses import dataclass

import numpy as np

from cllm.errors import CllmError
from cllm.executor.executor import Executor
from cllm.models.architecture import Architecture
from cllm.models.model import Model
from cllm.plans.plan import Plan
from cllm.plans.tree import Recompute
from cllm.program.declare import Feed, Flow, Param, Site
from cllm.program.dims import batch_letters, joined, resolve, settle
from cllm.program.layer import Layer
from cllm.program.program import plain
from cllm.program.wiring import Wiring
from cllm.proof.single_layer import Arrays, SingleLayer

BATCH, TIME = 5, 3  # five sequences are divided by no size of micro-batch but one
STEP, RELATIVE, ABSOLUTE = 1e-5, 1e-5, 1e-8  # of central differences in float64
ELEMENTS = 24  # of each array, spread evenly, that are differentiated
THREADS = (1, 2, 3)


def check_layer(layer: Layer, batch: int = BATCH, time: int = TIME, **shapes: str) -> None:
    """Prove that a layer keeps what its declaration says.

    Forward is a function of what it reads, and writes all that it declares and nothing else; gradients equal central
    differences in float64 and are added to those of parameters; results do not depend on addresses, and those of one
    position on no other unless the layer says ``across = True``; `extend`, where it has one, equals forward; in a small
    model, bits of loss and gradients depend on no cut of the batch, no rebuild, no number of threads, and on nothing that is
    frozen, and the highest byte written is the predicted one.

    Parameters
    ----------
    layer : Layer
    batch, time : int
        B and T of the arrays that are drawn.
    **shapes : str
        Shapes in letters of inputs for which the layer declares none (`Layer.reads`); those that stand nowhere are taken
        to be shaped like its output.

    Raises
    ------
    AssertionError
        With the first promise that does not hold, and what to mend.
    """
    if not isinstance(layer, Layer):
        raise AssertionError(f"check_layer(layer): must be an instance of a cllm.Layer; got {layer!r}")
    where = type(layer).__name__
    try:
        plain(layer)
        hash(layer)
    except (CllmError, TypeError) as error:
        raise AssertionError(f"{where}: a layer is a frozen dataclass of plain settings: {error}") from error
    _Proof(layer, batch, time, shapes).run()
    _check_in_a_model(layer, batch, time, shapes)


class _Proof:
    """Promises of a layer alone, in float64."""

    def __init__(self, layer: Layer, batch: int, time: int, shapes: dict[str, str]):
        self.layer, self.where = layer, type(layer).__name__
        self.sizes = batch, time, shapes
        self.one = SingleLayer(layer, *self.sizes)
        self.is_head = layer.evaluate_flow.exists
        self.optional = {site.name for site in layer.sites if site.optional}
        rng = np.random.default_rng(11)
        self.dy = None if self.is_head else rng.normal(0, 1, self.forward(self.one)[layer.output].shape)

    def run(self) -> None:
        self.check_forward()
        self.check_positions()
        self.check_gradients()
        self.check_addresses()
        self.check_extend()

    def fail(self, what: str, mend: str) -> None:
        raise AssertionError(f"{self.where}.{what}. {mend}")

    def forward(self, one: SingleLayer, fill: float = np.nan) -> Arrays:
        return self.call(one, "forward", {}, dict.fromkeys(self.optional) if not self.is_head else {}, fill)

    def call(self, one: SingleLayer, method: str, reads: Arrays, writes: Arrays, fill: float = np.nan) -> Arrays:
        try:
            return one.run(method, reads, writes, fill)
        except ValueError as error:
            if "read-only" in str(error):
                self.fail(f"{method} changes what it reads: {error}", "Write only into what stands after the bare *.")
            raise
        except AssertionError as error:
            raise AssertionError(f"{self.where}.{error}") from error

    def check_forward(self) -> None:
        first, second = self.forward(self.one, np.nan), self.forward(self.one, 13.0)
        for site in self.layer.sites:
            if first[site.name] is None:
                continue
            if not np.isfinite(first[site.name]).all():
                self.fail(f"forward leaves NaN in {site.name}", "Write every element of what is declared: "
                          f"{site.name} of shape {site.shape}, whatever it held before.")
            if not _same_bits(first[site.name], second[site.name]):
                self.fail(f"forward gives {site.name} other bits the second time", "Make the result a function of what is read "
                          "alone: nothing random, nothing kept from the last call, nothing of what the array held.")

    def check_positions(self) -> None:
        """A change in one position shows in that position only, where the layer does not say `across`."""
        layer, one = self.layer, self.one
        if layer.across or self.is_head or not has_positions(layer.sites[0].shape):
            return
        before = self.rows(self.forward(one)[layer.output]).copy()
        for name in layer.inputs:
            if has_positions(one.shape_of(name)):
                kept = one.given[name].copy()
                self.rows(one.given[name])[0] += 0.5
                after = self.rows(self.forward(one)[layer.output])
                one.given[name] = kept
                if not _same_bits(after[1:], before[1:]):
                    self.fail(f"forward lets {name} of one position change another's {layer.output}",
                              "Say across = True in the class, or keep rows apart.")

    def analytic(self, one: SingleLayer, start: float) -> Arrays:
        """Gradients of inputs and parameters, those that are added to begun at `start`."""
        layer = self.layer
        parameters = {"d" + p.name for p in layer.params if layer.has(p)}
        reads: Arrays = {**self.forward(one), "dy": self.dy} if not self.is_head else dict.fromkeys(self.optional)
        found: Arrays = {}
        for method in ("accumulate", "backward"):
            flow = getattr(layer, f"{method}_flow")
            if not set(flow.writes) - set(layer.passed()) - {s.name for s in layer.scratch}:
                continue
            begun = {name: np.full(one.given[name[1:]].shape, start) for name in flow.writes
                     if name in parameters or name in layer.adds}
            made = self.call(one, method, reads, begun)
            found |= {name: made[name] for name in flow.writes if name[0] == "d" and name[1:] in one.given}
        for name in layer.passed():
            found[name] = self.dy
        return found

    def check_gradients(self) -> None:
        layer, one = self.layer, self.one
        added = {"d" + p.name for p in layer.params} | set(layer.adds)
        zero, begun = self.analytic(one, 0.0), self.analytic(one, 4.0)
        for name, gradient in zero.items():
            if gradient is None or one.given[name[1:]] is None or name[1:] in layer.fed:
                continue
            if name in added and not np.allclose(begun[name] - 4.0, gradient, rtol=1e-9, atol=1e-9):
                self.fail(f"{name} is not added to what the array held",
                          f"Write {name} += ...: gradients of parameters, and of inputs named in adds, accumulate.")
            if not np.isfinite(gradient).all():
                self.fail(f"backward leaves NaN in {name}", "Write every element of it.")
            flat, free = one.given[name[1:]].reshape(-1), np.ones(one.given[name[1:]].shape, bool)
            for param in layer.params:
                if param.name == name[1:]:
                    free[layer.held_rows(param)] = False
            free = np.flatnonzero(free)
            for i in np.unique(free[np.linspace(0, free.size - 1, ELEMENTS).astype(int)]) if free.size else ():
                numeric, exact = self.numeric(flat, i), float(gradient.reshape(-1)[i])
                if abs(numeric - exact) > RELATIVE * max(abs(numeric), abs(exact)) + ABSOLUTE:
                    at = tuple(int(k) for k in np.unravel_index(i, gradient.shape))
                    self.fail(f"backward: {name}{list(at)} is {exact:.9g}, the central difference {numeric:.9g}",
                              "Differentiate again; at a kink of forward, check other values.")

    def loss(self) -> float:
        if not self.is_head:
            return float((self.forward(self.one)[self.layer.output] * self.dy).sum())
        made = self.call(self.one, "evaluate", dict.fromkeys(self.optional), {})
        return float(made["loss"][0]) * float(self.one.given["scale"][0])

    def numeric(self, flat: np.ndarray, i: int) -> float:
        kept, losses = flat[i], []
        for shift in (STEP, -STEP):
            flat[i] = kept + shift
            losses.append(self.loss())
        flat[i] = kept
        return (losses[0] - losses[1]) / (2 * STEP)

    def check_addresses(self) -> None:
        shifted = SingleLayer(self.layer, *self.sizes, shift=1)
        pairs = [(self.forward(self.one), self.forward(shifted))] if not self.is_head else []
        pairs.append((self.analytic(self.one, 0.0), self.analytic(shifted, 0.0)))
        scratch = {s.name for s in self.layer.scratch}
        for first, second in pairs:
            for name, array in first.items():
                if array is not None and name not in scratch and not _same_bits(array, second[name]):
                    self.fail(f"{name} has other bits where arrays stand elsewhere in memory",
                              "Let no result depend on an address (no peeling of loops by alignment).")

    def check_extend(self) -> None:
        layer, one = self.layer, self.one
        if not hasattr(layer, "extend") or getattr(layer, "packed", False):  # a packed form is never sampled from
            return
        whole = self.rows(self.forward(one)[layer.output])
        reads = [n for n in Flow.of(type(layer).extend).reads if n not in ("state", "position")]
        by_position = {declared.name for declared in (*layer.params, *layer.tables) if declared.by_position}
        shapes = {name: one.shape_of(name) for name in layer.inputs} | {n: feed.shape for n, feed in layer.fed.items()}
        _, time, _ = self.sizes
        for first in (1, time):  # the first sequence row by row, and all of it at once
            state = layer.start(time, "float64")
            for position in range(0, time, first):
                rows, letters = slice(position, position + first), {**layer.letters, **batch_letters(1, first)}
                given = [None if (a := one.given[n]) is None else a[rows] if n in by_position
                         else self.rows(a)[rows].reshape(resolve(shapes[n], letters))
                         if n in shapes and has_positions(shapes[n]) else a for n in reads]
                y = layer.extend(state, position, *given)
                if not np.allclose(y.reshape(first, -1), whole[rows], rtol=1e-9, atol=1e-12):
                    at = f"at position {position}" if first == 1 else f"where {first} rows are new at once"
                    self.fail(f"extend differs from forward {at}", "Make both compute the same rows from the same positions.")

    def rows(self, array: np.ndarray) -> np.ndarray:
        """The array with one row for each position."""
        batch, time, _ = self.sizes
        return array.reshape(batch * time, -1)


def has_positions(shape: str) -> bool:
    """Whether an array of that shape has a row for each position of each sequence."""
    return joined(shape).split()[0] == "N"


def _given(shape: str) -> Layer:
    """A layer y = fed * weight whose y has that shape: an input with a gradient."""

    @dataclass(frozen=True)
    class Given(Layer):
        sites = (Site("y", shape, "the input"),)
        params = (Param("weight", "1"),)
        feeds = (Feed("fed", shape),)
        in_order = True

        def forward(self, fed, weight, *, y):
            np.multiply(fed, weight[0], out=y)

        def accumulate(self, dy, fed, *, dweight):
            for row, here in zip(dy, fed, strict=True):
                dweight += (row * here).sum()

    return Given()


def _sum(shape: str) -> Layer:
    """A head whose loss is the sum over rows, in order, of x . r for a drawn r, both of that shape."""

    @dataclass(frozen=True)
    class Sum(Layer):
        sites = (Site("rows", shape.split()[0], "x . r", optional=True),)
        feeds = (Feed("r", shape),)
        reads = {"x": shape}
        in_order = True

        def forward(self, x, r, *, rows):
            rows[...] = [(a * b).sum() for a, b in zip(x, r, strict=True)]

        def evaluate(self, x, r, *, loss):
            for a, b in zip(x, r, strict=True):
                loss += float((a * b).sum())

        def backward(self, x, r, scale, *, loss, dx):
            self.evaluate(x, r, loss=loss)
            np.multiply(r, x.dtype.type(scale[0]), out=dx)

    return Sum()


@dataclass(frozen=True)
class _Around(Architecture):
    """A layer between what feeds its inputs and a sum, or at the end as head."""

    layer: Layer
    shapes: tuple[tuple[str, str], ...]

    def wire(self, w: Wiring) -> None:
        inputs = {}
        for name, shape in self.shapes:
            numbers = settle(shape, self.layer.letters)
            inputs[name] = w.add(f"given_{name}", _given(numbers), {"fed": f"feed_{name}"})
        y = w.add("layer", self.layer, **inputs)
        if not self.layer.evaluate_flow.exists:
            w.add("sum", _sum(w.shape_of(y)), x=y)


def _check_in_a_model(layer: Layer, batch: int, time: int, shapes: dict[str, str]) -> None:
    """Bits over cuts, rebuilds and threads, and the peak, in float32 as users train."""
    where = type(layer).__name__
    one = SingleLayer(layer, batch, time, shapes, dtype="float32")
    model = Model(_Around(layer, tuple((name, one.shape_of(name)) for name in layer.inputs)), seed=1)
    program = model.program
    if not program.has_time:  # a row is a sequence
        batch, time = batch * time, None
        one = SingleLayer(layer, batch, 1, shapes, dtype="float32")
    rng = np.random.default_rng(5)
    for parameter in model.parameters.values():
        parameter[...] = rng.normal(0, 0.7, parameter.shape)
    letters = batch_letters(batch, time)
    mine = program.steps[-1 if layer.evaluate_flow.exists else -2]
    own = {fed: name for name, fed in mine.feeds.items()}
    feeds = {name: one.given[own[name]] if name in own else rng.normal(0, 1, resolve(feed.shape, letters))
             for name, feed in program.feeds.items()}
    dropped = tuple((v, Recompute()) for v in mine.outputs.values() if program.readers[v] and not program.values[v].optional
                    and v not in program.block_inputs)

    def run(micro: int | None, threads: int, ends=()) -> tuple:
        model.zero_grad()
        executor = Executor(model, batch, time, strategy=Plan((), micro, ends=ends), num_threads=threads, optimizer="none")
        try:
            loss = executor.loss_and_grad(num_targets=batch, **feeds)
        except Exception as error:
            raise AssertionError(f"{where}: a step over {batch} sequences, {micro or batch} at a time, ends in an error: "
                                 f"{error}. The last micro-batch may be smaller: read sizes off the arrays that are handed "
                                 "in, and take of scratch, which stays as long as the largest needs, the beginning.") from error
        if executor.high_water_bytes != executor.memory.arena_bytes:
            raise AssertionError(f"{where}: {executor.memory.arena_bytes:,} bytes were predicted, the highest byte written is "
                                 f"{executor.high_water_bytes:,}. Declare scratch of the size that is used.")
        return loss, {name: g.tobytes() for name, g in model.gradients.items()}

    whole = run(None, 1)
    for threads in THREADS:
        _compare(where, run(None, threads), whole, f"with {threads} threads", "Divide work by shape, never by threads.")
    if dropped:
        _compare(where, run(None, 1, dropped), whole, "where its values are rebuilt",
                 "Make forward a function of what it reads.")
    for frozen in model.parameters if len(model.parameters) > 1 else ():
        for trained in ([frozen], [name for name in model.parameters if name != frozen]):
            model.trainable = trained
            _compare(where, run(None, 2), whole, f"where only {', '.join(trained)} is trained", "Name in spares what a method "
                     "leaves out when it is handed None, and beside it what it reads for that alone; nothing else hangs on it.")
    model.trainable = None
    if layer.in_order is not False:
        for micro in (1, 2, 3):
            _compare(where, run(micro, 2), whole, f"where the batch is cut into micro-batches of {micro}",
                     "Add rows to gradients and loss one after the other, beginning with what the array holds "
                     "(for row in rows: dweight += row), or say in_order = False: plans that cut are then not exact.")


def _compare(where: str, got: tuple, whole: tuple, when: str, mend: str) -> None:
    if got[0] != whole[0]:
        raise AssertionError(f"{where}: the loss has other bits {when}. {mend}")
    for name, gradient in got[1].items():
        if whole[1][name] != gradient:
            raise AssertionError(f"{where}: the gradient of {name} has other bits {when}. {mend}")


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
