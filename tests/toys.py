"""Small NumPy layers, programs wired from them, and an interpreter: what tests of the core need besides the real model.

A layer here is declared as any other and works in float64 or complex128, so that gradients are proved by a complex step:
the imaginary part of f(x + ih) / h has no rounding error of subtraction. `run` interprets a schedule op by op, fills the
arena with NaN first and every buffer again at the moment when it is freed; `reference` runs the layers on arrays of
their own, with no schedule at all.
"""
import functools
from dataclasses import dataclass

import numpy as np

import cllm
from cllm.arrays import aligned_empty
from cllm.executor.binding import Binder
from cllm.plans.plan import Plan
from cllm.plans.tree import Tape
from cllm.program.declare import HANDED_ARRAYS, Param, Scratch, Site
from cllm.program.dims import resolve
from cllm.program.layer import Layer
from cllm.program.wiring import Wiring
from cllm.program.workload import Workload
from cllm.schedule.arena import lay_out
from cllm.schedule.build import build_schedule

POISON = 0xFF  # bytes of 0xFF are NaN in float32 and float64


@dataclass(frozen=True, slots=True)
class Source(Layer):
    """y = weight[token]"""

    V: int
    C: int
    std: float = 0.5

    sites = (Site("y", "N C", "rows"),)
    params = (Param("weight", "V C"),)

    def forward(self, tokens, weight, *, y):
        y[...] = weight[tokens.reshape(-1)]

    def accumulate(self, dy, tokens, *, dweight):
        np.add.at(dweight, tokens.reshape(-1), dy)


@dataclass(frozen=True, slots=True)
class Scale(Layer):
    """y = x w, with a side value 2 x that backward reads."""

    C: int
    std: float = 0.5

    sites = (Site("y", "N C", "scaled"), Site("twice", "N C", "2 x", group="side"))
    params = (Param("weight", "C"),)

    def forward(self, x, weight, *, y, twice):
        y[...] = x * weight
        twice[...] = 2 * x

    def backward(self, dy, twice, weight, *, dx, dweight):
        for row, half in zip(dy, twice / 2, strict=True):
            dweight += row * half
        dx[...] = dy * weight


@dataclass(frozen=True, slots=True)
class Tanh(Layer):
    """y = tanh(x); its gradient may take the place of dy."""

    C: int

    sites = (Site("y", "N C", "tanh", group="act"),)
    overwrites = ("dx",)

    def forward(self, x, *, y):
        y[...] = np.tanh(x)

    def backward(self, dy, y, *, dx):
        dx[...] = dy * (1 - y * y)


@dataclass(frozen=True, slots=True)
class Square(Layer):
    """y = x^2 / 2, whose gradient is added to what is there; with scratch."""

    C: int

    sites = (Site("y", "N C", "half the square"),)
    scratch = (Scratch("room", lambda layer, letters, threads, itemsize: letters["N"] * layer.C),)
    adds = ("dx",)

    def forward(self, x, *, y, room):
        room = room[:x.size]
        room[...] = x.reshape(-1) / 2
        y[...] = x * room.reshape(x.shape)

    def backward(self, dy, x, *, dx, room):
        room = room[:x.size]
        room[...] = (dy * x).reshape(-1)
        dx += room.reshape(dx.shape)


@dataclass(frozen=True, slots=True)
class Rough(Layer):
    """y = x / 2, with more scratch in forward than anything takes in backward."""

    C: int

    sites = (Site("y", "N C", "half"),)
    scratch = (Scratch("room", lambda layer, letters, threads, itemsize: 4 * letters["N"] * layer.C),)

    def forward(self, x, *, y, room):
        room[:4 * x.size] = np.repeat(x.reshape(-1), 4)
        y[...] = room[:4 * x.size:4].reshape(x.shape) / 2

    def backward(self, dy, *, dx):
        dx[...] = dy / 2


@dataclass(frozen=True, slots=True)
class Add(Layer):
    """y = a + b; both gradients are dy itself."""

    C: int

    sites = (Site("y", "N C", "sum", group="residual", role="stream"),)
    passes = ("da", "db")

    def forward(self, a, b, *, y):
        y[...] = a + b


@dataclass(frozen=True, slots=True)
class Sum(Layer):
    """The same, an array like others to the planner."""

    C: int

    sites = (Site("y", "N C", "sum"),)
    passes = ("da", "db")

    def forward(self, a, b, *, y):
        y[...] = a + b


@dataclass(frozen=True, slots=True)
class AddTriple(Layer):
    """y = 3 a + b: db is passed, da may overwrite dy."""

    C: int

    sites = (Site("y", "N C", "3 a + b"),)
    passes = ("db",)
    overwrites = ("da",)

    def forward(self, a, b, *, y):
        y[...] = 3 * a + b

    def backward(self, dy, *, da):
        da[...] = 3 * dy


@dataclass(frozen=True, slots=True)
class AddHalf(Layer):
    """y = a + b / 2: da is passed, db may overwrite dy."""

    C: int

    sites = (Site("y", "N C", "a + b / 2"),)
    passes = ("da",)
    overwrites = ("db",)

    def forward(self, a, b, *, y):
        y[...] = a + b / 2

    def backward(self, dy, *, db):
        db[...] = dy / 2


@dataclass(frozen=True, slots=True)
class Times(Layer):
    """y = a b; either gradient may overwrite dy, not both."""

    C: int

    sites = (Site("y", "N C", "product"),)
    overwrites = ("da", "db")

    def forward(self, a, b, *, y):
        y[...] = a * b

    def backward(self, dy, a, b, *, da, db):
        first, second = dy * b, dy * a
        da[...] = first
        db[...] = second


@dataclass(frozen=True, slots=True)
class Mix(Layer):
    """y = x W, the weight's gradient apart from x's, and an optional value that backward takes when it is kept."""

    C: int
    std: float = 0.5

    sites = (Site("y", "N C", "mixed", group="mix"), Site("cube", "N C", "x^3, of no use but to be kept", group="cube",
                                                          optional=True))
    params = (Param("weight", "C C"),)

    def forward(self, x, weight, *, y, cube):
        y[...] = x @ weight
        if cube is not None:
            cube[...] = x ** 3

    def accumulate(self, dy, x, *, dweight):
        for row, here in zip(dy, x, strict=True):
            dweight += here[:, None] * row[None, :]

    def backward(self, dy, cube, weight, *, dx):
        if cube is not None and not np.isfinite(cube).all():
            raise AssertionError("the kept value was not written, or freed too early")
        dx[...] = dy @ weight.T


@dataclass(frozen=True, slots=True)
class Norm(Layer):
    """y = x r w with r = 1 / sqrt(mean of x^2 over the row + 1), whose gradient is added to what is there."""

    C: int

    sites = (Site("y", "N C", "rows of like length", group="norm"), Site("r", "N 1", "one by length", role="statistics"))
    params = (Param("weight", "C", "ones"),)
    adds = ("dx",)

    def forward(self, x, weight, *, y, r):
        r[...] = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1)
        y[...] = x * r * weight

    def backward(self, dy, x, r, weight, *, dx, dweight):
        for row in dy * x * r:
            dweight += row
        dx += r * (dy * weight - x * r * r * (dy * weight * x).mean(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Project(Layer):
    """y = x W, from I columns to O."""

    I: int  # noqa: E741
    O: int  # noqa: E741
    std: float = 0.5

    sites = (Site("y", "N O", "x W"),)
    params = (Param("weight", "I O"),)
    costless = ("std",)

    def forward(self, x, weight, *, y):
        y[...] = x @ weight

    def accumulate(self, dy, x, *, dweight):
        for row, here in zip(dy, x, strict=True):
            dweight += here[:, None] * row[None, :]

    def backward(self, dy, weight, *, dx):
        dx[...] = dy @ weight.T

    def forward_flops(self, letters):
        return 2.0 * letters["N"] * self.I * self.O


@dataclass(frozen=True, slots=True)
class Attend(Layer):
    """Causal attention of one head: q, k and v come from three steps."""

    C: int

    sites = (Site("y", "N C", "attended rows", group="attn"), Site("total", "B T", "sums of weights", role="statistics"))

    def _weights(self, q, k, batch):
        q, k = (a.reshape(batch, -1, self.C) for a in (q, k))
        return np.tril(np.exp(q @ k.swapaxes(1, 2) / self.C))

    def forward(self, q, k, v, *, y, total):
        weights = self._weights(q, k, len(total))
        total[...] = weights.sum(axis=2)
        y[...] = (weights @ v.reshape(len(total), -1, self.C) / total[..., None]).reshape(y.shape)

    def backward(self, dy, q, k, v, total, *, dq, dk, dv):
        shape = (len(total), -1, self.C)
        share = self._weights(q, k, len(total)) / total[..., None]
        above, dshare = dy.reshape(shape), dy.reshape(shape) @ v.reshape(shape).swapaxes(1, 2)
        dscore = share * (dshare - (share * dshare).sum(axis=2, keepdims=True)) / self.C
        dq[...] = (dscore @ k.reshape(shape)).reshape(q.shape)
        dk[...] = (dscore.swapaxes(1, 2) @ q.reshape(shape)).reshape(k.shape)
        dv[...] = (share.swapaxes(1, 2) @ above).reshape(v.shape)

    def forward_flops(self, letters):
        return 2.0 * letters["B"] * letters["T"] * (letters["T"] + 1) * self.C


@dataclass(frozen=True, slots=True)
class Gate(Layer):
    """y = a / (1 + exp(-a)) b over F columns."""

    F: int

    sites = (Site("y", "N F", "gated", group="act"),)

    def forward(self, a, b, *, y):
        y[...] = a / (1 + np.exp(-a)) * b

    def backward(self, dy, a, b, *, da, db):
        share = 1 / (1 + np.exp(-a))
        da[...] = dy * b * share * (1 + a * (1 - share))
        db[...] = dy * a * share


@dataclass(frozen=True, slots=True)
class Head(Layer):
    """loss = sum of (target + 1) (x . weight[0] + x^2 / 2) over rows; scratch grows with the rows in work."""

    V: int
    C: int
    std: float = 0.5

    sites = (Site("logits", "N V", "scores", group="logits", optional=True),)
    params = (Param("weight", "V C"),)
    scratch = (Scratch("chunk", lambda layer, letters, threads, itemsize: letters["R"] * layer.V),)

    def forward(self, x, weight, *, logits):
        logits[...] = x @ weight.T

    def evaluate(self, x, weight, targets, *, loss):
        for row, target in zip(x, targets.reshape(-1), strict=True):
            loss += ((target + 1) * (row * weight[0] + row * row / 2)).sum()

    def backward(self, x, weight, targets, scale, logits, *, loss, dx, dweight, chunk):
        self.evaluate(x, weight, targets, loss=loss)
        chunk[...] = 0
        factor = (targets.reshape(-1) + 1) * scale[0]
        for row, f in zip(x, factor, strict=True):
            dweight[0] += f * row
        dx[...] = factor[:, None] * (weight[0] + x)


UNARY = (Scale, Tanh, Square, Mix)
BINARY = (Add, Sum, AddTriple, AddHalf, Times)
V, C = 5, 3

# Lines of blocks, as `wire` takes them.
A = ((Scale, 0, 0), (Mix, 1, 0), (Tanh, 2, 0), (Add, 3, 0))
B = ((Tanh, 0, 0), (Scale, 1, 0), (Mix, 2, 0), (Add, 0, 3))
FEW = ((Scale, 0, 0), (Tanh, 1, 0), (Add, 2, 0))
ONE = ((Mix, 0, 0), (Tanh, 1, 0), (Add, 2, 0))
CUT = ((Scale, 0, 0), (Mix, 1, 0), (Tanh, 2, 0), (Add, 3, 0), (Square, 4, 0), (Mix, 5, 0), (Tanh, 6, 0), (Add, 7, 4))
CHAIN = ((Mix, 0, 0), (Square, 1, 0), (Mix, 2, 0), (Square, 3, 0))
FREE = ((Mix, 0, 0), (Tanh, 1, 0), (Sum, 2, 0), (Square, 3, 0), (Tanh, 4, 0), (Add, 5, 3))
OWN = ((Tanh, 0, 0), (Mix, 1, 0), (Tanh, 2, 0), (Square, 3, 0))
ROUGH = ((Rough, 0, 0), (Mix, 1, 0), (Square, 2, 0), (Rough, 3, 0))
WIDE = ((Square, 0, 0), (Mix, 1, 0), (Square, 2, 0), (Tanh, 3, 0), (Add, 4, 0))


def config(width=C, n_layers=1):
    """A model configuration that lends its letters."""
    return cllm.ModelConfig(V, n_layers, width, 1, 4, 64)


def workload(batch=3, time=2, width=C, threads=1):
    """A workload of float64."""
    return Workload(batch, time, "float64", "none", threads)


def wire(blocks, width=C, tied=False, before=(), after=()):
    """A program from lists of lines: (layer class, number of first operand, number of second).

    Operand 0 is the region's input, k the result of its k-th line. The last line's result leaves the region; results
    that nobody read are added to it, so that there is no dead end. A line may be followed by a parameter's shared name.
    """
    wiring = Wiring()

    def region(lines, x):
        made, read = [x], set()
        for number, (kind, first, second, *shared) in enumerate(lines):
            pair = kind in BINARY
            names = ("a", "b") if pair else ("x",)
            operands = (first, second) if pair else (first,)
            read.update(operands)
            inputs = dict(zip(names, (made[i] for i in operands), strict=True))
            made.append(wiring.add(f"s{number}", kind(C=width), {"weight": shared[0]} if shared else None, **inputs))
        loose = [i for i in range(len(made) - 1) if i not in read]
        for i in loose:
            made.append(wiring.add(f"join{i}", Add(C=width), a=made[-1], b=made[i]))
        return made[-1]

    x = wiring.add("source", Source(V=V, C=width), {"weight": "table"})
    x = region(before, x)
    for number, lines in enumerate(blocks):
        with wiring.block(number):
            x = region(lines, x)
    x = region(after, x)
    wiring.add("head", Head(V=V, C=width), {"weight": "table" if tied else "head.weight"}, x=x)
    return wiring.program()


def wire_gated(n_blocks, width=C, inner=2 * C, add=Add, parallel=False):
    """A program of blocks with separate q, k and v and a gated feed-forward layer; `parallel` feeds both branches from one
    norm and adds them at once, so that no single value passes inside a block."""
    wiring = Wiring()
    line = wiring.add
    x = line("source", Source(V=V, C=width))
    for number in range(n_blocks):
        with wiring.block(number):
            h = line("norm1", Norm(C=width), x=x)
            q, k, v = (line(name, Project(I=width, O=width), x=h) for name in "qkv")
            o = line("out", Project(I=width, O=width), x=line("attend", Attend(C=width), q=q, k=k, v=v))
            if not parallel:
                x = line("res1", add(C=width), a=x, b=o)
                h = line("norm2", Norm(C=width), x=x)
            a, b = (line(name, Project(I=width, O=inner), x=h) for name in ("gate", "up"))
            m = line("down", Project(I=inner, O=width), x=line("act", Gate(F=inner), a=a, b=b))
            x = line("res2", add(C=width), a=x, b=line("both", Add(C=width), a=o, b=m) if parallel else m)
    line("head", Head(V=V, C=width), x=x)
    return wiring.program()


def draw_parameters(program, seed=0):
    """Normal numbers for every parameter."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.7, p.shape) for name, p in program.parameters.items()}


def draw_batch(work, seed=0):
    """Tokens and targets."""
    rng = np.random.default_rng(seed + 99)
    return tuple(rng.integers(0, V, (work.batch, work.time)).astype(np.int32) for _ in range(2))


def reference(program, parameters, tokens, targets):
    """The loss by running every layer once on arrays of its own."""
    dtype = np.result_type(*parameters.values())
    letters = {"B": tokens.shape[0], "T": tokens.shape[1], "N": tokens.size, "V": V,
               "C": next(iter(parameters.values())).shape[-1], "R": tokens.size}
    feeds = {"tokens": tokens, "targets": targets, "loss": np.zeros(1, dtype)}
    made = {}
    for step in program.steps:
        layer = step.layer
        last = step is program.steps[-1]
        flow = layer.evaluate_flow if last else layer.forward_flow

        def argument(name, step=step, layer=layer, made=made):
            if name in step.inputs:
                return made[step.inputs[name]]
            if name in step.params:
                return parameters[step.params[name]]
            if name in feeds:
                return feeds[name]
            site = next((s for s in layer.sites if s.name == name), None)
            if site is None:
                return np.zeros(letters["N"] * letters["C"], dtype)
            return None if site.optional else np.empty(resolve(site.shape, {**letters, **layer.letters}), dtype)

        writes = {name: argument(name) for name in flow.writes}
        (layer.evaluate if last else layer.forward)(*[argument(name) for name in flow.reads], **writes)
        made |= {step.outputs[name]: array for name, array in writes.items() if name in step.outputs}
    return feeds["loss"][0]


def complex_step(program, parameters, tokens, targets, scale):
    """Gradients of scale * loss, to the last digits."""
    gradients = {}
    for name, value in parameters.items():
        gradient = np.empty_like(value)
        for at in np.ndindex(value.shape):
            shifted = {n: p.astype(complex) for n, p in parameters.items()}
            shifted[name][at] += 1e-30j
            gradient[at] = reference(program, shifted, tokens, targets).imag / 1e-30 * scale
        gradients[name] = gradient
    return gradients


def cache_all(program):
    """The plan that keeps everything."""
    return Plan(tuple(Tape(b) for b in range(program.n_blocks)))


def run(program, work, plan, parameters, tokens, targets, scale=0.25, poison=True, watch=None):
    """Interpret a plan: loss, gradients by name, and the schedule.

    `poison` fills the arena, and each buffer when it is freed, with NaN; the epilogue and micro-batches are as in the
    executor. `watch(op, position)` is called after each operation.
    """
    schedule = build_schedule(program, work, plan)
    arena = lay_out(schedule)
    slab = aligned_empty(arena.nbytes, np.uint8)
    slab.fill(POISON)
    gradients = {name: np.zeros_like(p) for name, p in parameters.items()}
    feeds = {name: np.zeros(resolve(shape, {}), dtype) for name, (shape, dtype) in HANDED_ARRAYS.items()}
    feeds |= {name: np.zeros((schedule.micro_batch, work.time), np.int32) for name in ("tokens", "targets")}
    feeds["scale"][0] = scale
    whole = {**feeds, "tokens": tokens, "targets": targets}

    @functools.cache
    def calls(size):
        letters = {**work.letters(size), "R": min(schedule.loss_rows, size * work.time)}
        mine = {n: a[:size] if n in ("tokens", "targets") else a for n, a in feeds.items()}
        whole_letters = {**work.letters(), "R": schedule.loss_rows}
        binder = Binder(schedule, arena, slab, letters, whole_letters, parameters, {}, gradients, mine, whole)
        return [binder.call(op) for op in schedule.ops]

    def interpret(positions, size):
        for position in positions:
            calls(size)[position]()
            op = schedule.ops[position]
            for b in op.frees if poison else ():
                start = arena.offsets[b]
                slab[start:start + schedule.buffers[b].nbytes] = POISON
            if watch is not None:
                watch(op, position)

    for start in range(0, work.batch, schedule.micro_batch):
        size = min(schedule.micro_batch, work.batch - start)
        feeds["tokens"][:size] = tokens[start:start + size]
        feeds["targets"][:size] = targets[start:start + size]
        feeds["key"][2] = start * work.time
        interpret(range(schedule.epilogue), size)
    interpret(range(schedule.epilogue, len(schedule.ops)), size)
    return float(feeds["loss"][0]), gradients, schedule
