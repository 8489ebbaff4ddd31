"""From a plan to what runs: a flat tuple of operations over buffers whose lifetimes are known.

The schedule is written out naively (every sweep runs whole blocks, every rebuild writes all that its step writes); then
`finish` drops what nobody reads. So a rebuild never runs a step that nobody needs, and no strategy has to think of it.
"""

from collections.abc import Iterable, Mapping
from functools import partial

from cllm.errors import PlanError
from cllm.plans.check import check_plan, head_rows
from cllm.plans.plan import Plan
from cllm.plans.script import MAKES, Script
from cllm.plans.tree import Cache, Compress, Decision, OnDisk, Recompute, Segment, Tape
from cllm.program.declare import Flow
from cllm.program.dims import NARROW, aligned, elements
from cllm.program.gradients import Cell, GradientStep, wire_gradients
from cllm.program.kinds import Kind
from cllm.program.parts import Step
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.compression import packed_shape
from cllm.schedule.finish import Cuts, DraftBuffer, DraftOp, finish
from cllm.schedule.operations import ITEMSIZES, Schedule
from cllm.schedule.reductions import Reductions
from cllm.schedule.updates import Updates

# The head's rows in work at once where a plan leaves it open: the whole micro-batch while its logits fit the second
# level cache of a few cores, else as many as 64 MiB of logits hold, so that the passes over the head's gradient stay few.
LOGITS_SMALL = 8 << 20
LOGITS_LARGE = 64 << 20

def build_schedule(program: Program, workload: Workload, plan: Plan, mode: str = "train") -> Schedule:
    """Write out what a plan means.

    Parameters
    ----------
    mode : {"train", "step", "loss", "logits"}
        Loss and gradients; a whole step, with what it does to parameters; the loss alone; forward up to the head's logits,
        which go to an array outside the arena.

    Raises
    ------
    PlanError
        When the plan does not fit the program or the batch.
    ConfigError
        When its arrays are beyond any machine.
    """
    check_plan(program, workload, plan)
    return _Builder(program, workload, plan).build(mode)


def scores_in_a_row(program: Program) -> int:
    """V of the head; 1 for one without."""
    return program.head.layer.letters.get("V", 1)


def default_loss_rows(rows: int, scores: int, itemsize: int) -> int:
    """Rows of the head in work at once where a plan leaves it open."""
    width = scores * itemsize
    if rows * width <= LOGITS_SMALL:
        return rows
    return min(rows, max(64, LOGITS_LARGE // width // 64 * 64))


class _Builder:
    """Emits operations; `saved` dictionaries map names of values to buffers."""

    def __init__(self, program: Program, workload: Workload, plan: Plan):
        self.program, self.whole, self.plan = program, workload, plan
        self.workload = workload = workload.group
        self.micro = plan.micro_batch or workload.batch
        self.n_micro = -(-workload.batch // self.micro)
        self.letters = workload.letters(self.micro)
        self.whole_letters = workload.letters()
        rows = head_rows(program, workload, self.micro)
        chosen = plan.loss_rows or default_loss_rows(rows, scores_in_a_row(program), workload.itemsize)
        self.letters["R"] = self.whole_letters["R"] = min(rows, chosen)
        self.buffers: list[DraftBuffer] = []
        self.ops: list[DraftOp] = []
        self.cells: dict[Cell, int] = {}
        self.packed: dict[int, tuple[str, int]] = {}  # buffer of a packed copy -> (kind of copy, block)
        self.scratch_sizes: dict[tuple, int] = {}
        self.sizes: dict[tuple, int] = {}
        self.moves: dict[int, list] = {}
        self.given: dict[str, int] = {}  # what the steps before the blocks leave

    def build(self, mode: str) -> Schedule:
        deferred: list = []
        if mode in ("train", "step"):
            for move in wire_gradients(self.program):
                self.moves.setdefault(move.step.index, []).append(move)
            if self.plan.script:
                self.follow(self.plan.script, deferred)
                return self.ended(mode, deferred)
        before, _, after = self.program.regions
        inputs = self.program.block_inputs
        head = self.program.steps[-1]
        self.given, entry = self.tape(before, {}, self.plan.ends, inputs[0])
        if mode in ("loss", "logits"):
            for block in range(self.program.n_blocks):
                _, entry = self.tape(self.program.regions[1][block], {inputs[block]: entry}, (), inputs[block + 1])
            env = {inputs[-1]: entry}
            for step in after[:-1]:
                self.forward(step, env, set())
            self.emit(Kind.EVALUATE if mode == "loss" else Kind.LOGITS, head, self.bound(head, env), {},
                      head.layer.evaluate_flow if mode == "loss" else head.layer.forward_flow)
            return self.finished(len(self.ops), mode)
        saved, exit_ = self.open(self.plan.children, entry, Kind.FORWARD)
        saved_after, _ = self.tape(after, {inputs[-1]: exit_}, self.plan.ends, None)
        self.backward(after, saved_after, deferred)
        self.close(self.plan.children, saved, deferred)
        self.backward(before, self.given, deferred)
        return self.ended(mode, deferred)

    def ended(self, mode: str, deferred: list) -> Schedule:
        """The schedule, with what waited until its end."""
        epilogue = len(self.ops)
        for move, stash, writes in deferred:
            self.emit(Kind.ACCUMULATE, move.step, {"dy": stash}, writes, move.step.flow("accumulate"), whole=True)
        return self.finished(epilogue, mode)

    def finished(self, epilogue: int, mode: str) -> Schedule:
        plan = self.plan
        whole_step = mode == "step"
        adds = whole_step or mode == "train" and self.whole.groups > 1
        add = partial(self.added, whole_step=whole_step) if adds else None
        ops, cuts, buffers = finish(self.ops, epilogue, self.buffers, plan.spills, add)
        return Schedule(ops, cuts.epilogue, buffers, self.micro, self.n_micro, self.letters["R"],
                        whole_step and plan.update_in_backward, whole_step and plan.states_on_disk, cuts.prologue,
                        len(ops) - cuts.finale, self.whole.own_groups)

    def added(self, ops: list[DraftOp], epilogue: int, whole_step: bool) -> tuple[list[DraftOp], Cuts]:
        """The operations with those on parameters among them."""
        prologue, finale, sums = 0, len(ops), {}
        if self.whole.groups > 1:
            reductions = Reductions(self.program, self.whole, self.buffers, self.n_micro)
            ops, prologue, epilogue = reductions.add(ops, epilogue, whole_step)
            finale, sums = len(ops), reductions.sums
        if whole_step:
            plan = self.plan
            updates = Updates(self.program, self.whole, self.buffers, plan.update_in_backward, plan.states_on_disk,
                              self.n_micro, sums)
            ops, epilogue = updates.add(ops, epilogue)
        return ops, Cuts(prologue, epilogue, finale if self.whole.groups > 1 else len(ops))

    def follow(self, script: Script, deferred: list) -> None:
        """Emit the lines of a script, which has been checked."""
        steps = {step.name: step for step in self.program.steps}
        env: dict[str, int] = {}
        accumulated = None
        for word, name, *optional in script.order:
            if word == "free":
                del env[name]
            elif word in MAKES:
                self.forward(steps[name], env, set(optional), Kind(word))
            else:
                moves = self.moves.get(steps[name].index, ())
                done = name == accumulated
                chosen = [m for m in moves if m.kind == Kind.ACCUMULATE] if word == "accumulate" else moves[done:]
                self.move(chosen, env, deferred)
                accumulated = name if word == "accumulate" and chosen else None

    # forward

    def open(self, children: Iterable[Tape | Segment], entry: int, kind: str) -> tuple[list, int]:
        """Run children forward from the buffer of the first one's input; what each leaves for its backward."""
        inputs, saved = self.program.block_inputs, []
        for child in children:
            if isinstance(child, Tape):
                left, entry = self.tape(self.program.regions[1][child.block], {inputs[child.block]: entry},
                                        child.decisions, inputs[child.block + 1], kind)
            else:
                left = self.kept({inputs[child.blocks.start]: entry}, child.input)
                for block in child.blocks:
                    _, entry = self.tape(self.program.regions[1][block], {inputs[block]: entry}, (), inputs[block + 1], kind)
            saved.append(left)
        return saved, entry

    def tape(self, steps: tuple[Step, ...], given: Mapping[str, int], decisions: tuple[tuple[str, Decision], ...],
             output: str | None, kind: Kind = Kind.FORWARD) -> tuple[dict[str, int], int | None]:
        """Forward through some steps; the buffers that the decisions keep, and the buffer of the output."""
        decided = dict(decisions)
        env = dict(given)
        optional = {v for s in steps for v in s.outputs.values()
                    if self.program.values[v].optional and isinstance(self._decision(decided, v), Cache | Compress | OnDisk)}
        saved = self.kept(given, decided.get("input", Cache()))
        for step in steps:
            self.forward(step, env, optional, kind)
            for v in step.outputs.values():
                decision = self._decision(decided, v)
                # what no backward reads is never kept: a rebuild that needs it makes it again
                if v in env and v != output and self.program.readers[v] and not isinstance(decision, Recompute):
                    saved[v] = self.pack(v, env[v], decision)
        return saved, env.get(output)

    def kept(self, given: Mapping[str, int], decision: Decision) -> dict[str, int]:
        """The buffers that keep what a block or a segment is given."""
        return {} if isinstance(decision, Recompute) else {v: self.pack(v, b, decision) for v, b in given.items()}

    def pack(self, name: str, buffer: int, decision: Decision | None) -> int:
        """The buffer that keeps a value: its own, or that of a copy, compressed or on disk."""
        value, source = self.program.values[name], self.buffers[buffer]
        if isinstance(decision, Compress):
            shape, dtype = packed_shape(decision.dtype, source.shape, self.letters)
            copy = self.buffer(f"{name} as {decision.dtype}", shape, dtype, "packed", value.block, value=name)
            kind = Kind.ROUND if decision.rounding == "stochastic" else Kind.COMPRESS
            self.emit(kind, self.program.steps[value.step], {"src": buffer}, {"dst": copy}, None)
            self.packed[copy] = "expand", buffer
            return copy
        if isinstance(decision, OnDisk):
            copy = self.buffer(f"{name} on disk", source.shape, source.dtype, "disk", value.block, value=name)
            for kind in (Kind.SPILL_START, Kind.SPILL_WAIT):
                self.emit(kind, self.program.steps[value.step], {"src": buffer}, {"dst": copy}, None)
            self.packed[copy] = "fetch", buffer
            return copy
        return buffer

    def unpack(self, name: str, copy: int) -> int:
        """The buffer of a value expanded or fetched from its copy."""
        way, original = self.packed[copy]
        source, step = self.buffers[original], self.program.steps[self.program.values[name].step]
        buffer = self.buffer(name, source.shape, source.dtype, "rebuild", source.block, value=name)
        for kind in (Kind.EXPAND,) if way == "expand" else (Kind.FETCH_START, Kind.FETCH_WAIT):
            self.emit(kind, step, {"src": copy}, {"dst": buffer}, None)
        return buffer

    def _decision(self, decided: dict[str, Decision], value: str) -> Decision | None:
        entry = self.program.values[value]
        default = None if entry.optional else Cache()
        return decided.get(entry.key if entry.block is not None else value, default)

    def forward(self, step: Step, env: dict[str, int], optional: set[str], kind: Kind = Kind.FORWARD,
                keep: Mapping[str, int] | None = None) -> None:
        """Emit a layer's forward; `env` learns the buffers of its outputs, but those in `keep` stay as they are."""
        writes = {}
        for site, name in step.outputs.items():
            value = self.program.values[name]
            if value.optional and name not in optional:
                continue
            writes[site] = self.buffer(name, value.shape, value.dtype, kind, step.block, value=name)
        self.emit(kind, step, self.bound(step, env), writes, step.layer.forward_flow)
        for site, buffer in writes.items():
            if keep is None or step.outputs[site] not in keep:
                env[step.outputs[site]] = buffer

    # backward

    def close(self, children: tuple, saved: list, deferred: list) -> None:
        """Run children backward in reverse, opening segments."""
        for child, left in zip(reversed(children), reversed(saved), strict=True):
            if isinstance(child, Tape):
                self.backward(self.program.regions[1][child.block], left, deferred)
            else:
                entry, env = self.program.block_inputs[child.blocks.start], {**self.given, **left}
                self.rebuild(entry, env)
                inner, _ = self.open(child.children, env[entry], Kind.REBUILD)
                self.close(child.children, inner, deferred)

    def backward(self, steps: tuple[Step, ...], saved: dict[str, int], deferred: list) -> None:
        """Emit the gradient moves of some steps, rebuilding on demand what was not saved."""
        env = {**self.given, **saved}
        for step in reversed(steps):
            self.move(self.moves.get(step.index, ()), env, deferred)

    def move(self, moves: Iterable[GradientStep], env: dict[str, int], deferred: list) -> None:
        """Emit these moves; `env` learns what had to be rebuilt for them."""
        for move in moves:
            step = move.step
            cells = {name: self.cell(cell, move) for name, cell in {**move.reads, **move.writes}.items()}
            reads = {n: cells[n] for n in move.reads}
            writes = {n: cells[n] for n in move.writes}
            if move.kind not in (Kind.ACCUMULATE, Kind.BACKWARD):
                self.emit(move.kind, step, reads, writes)
                continue
            if move.kind == Kind.ACCUMULATE and self.n_micro > 1 and step.index in self.program.waiting_steps:
                deferred.append((move, self.stash(move, reads), writes))
                continue
            flow = step.flow(move.kind)
            for name in self.program.values_of(step, flow):
                self.rebuild(name, env)
            self.emit(move.kind, step, {**self.bound(step, env, flow.reads), **reads}, writes, flow)

    def rebuild(self, name: str, env: dict[str, int]) -> None:
        """Make sure that a value is at hand, by running its step again if need be."""
        value = self.program.values[name]
        if name in env and env[name] in self.packed:
            env[name] = self.unpack(name, env[name])
        if name in env or value.optional:
            return
        step = self.program.steps[value.step]
        for source in step.inputs.values():
            self.rebuild(source, env)
        self.forward(step, env, set(), Kind.REBUILD, keep=dict(env))

    def stash(self, move, reads: dict[str, int]) -> int:
        """Emit the copy of a gradient to where it waits for the epilogue."""
        if self.program.needs_to_wait(move.step):
            raise PlanError(move.step.name, "a layer that shares a parameter with a later one must need only its dy "
                            "and feeds in accumulate when the batch is cut",
                            ", ".join(move.step.flow("accumulate").reads),
                            "Do not tie this parameter, or use the whole batch as one micro-batch.")
        dy = self.buffers[reads["dy"]]
        waiting = self.buffer(f"{dy.label} of the whole batch", dy.shape, dy.dtype, "stash", None, whole=True)
        self.emit(Kind.STASH, move.step, {"src": reads["dy"]}, {"dst": waiting})
        return waiting

    # operations and buffers

    def cell(self, cell: Cell, move) -> int:
        """The buffer of a gradient cell: the shape of the value whose gradient it first held; none is bfloat16."""
        if cell not in self.cells:
            of = self.program.values.get(cell.of) or self.program.feeds.get(cell.of)
            shape, dtype = (of.shape, of.dtype) if of is not None else (
                " ".join(map(str, self.program.parameters[cell.of].shape)), None)
            self.cells[cell] = self.buffer(cell.label, shape, None if dtype == NARROW else dtype, "gradient", move.step.block)
        return self.cells[cell]

    def bound(self, step: Step, env: Mapping[str, int], names: Iterable[str] | None = None) -> dict[str, int]:
        """The buffers that a step's inputs and sites stand for; all inputs where `names` is None."""
        named = {**step.inputs, **step.outputs} if names is not None else step.inputs
        return {n: env[named[n]] for n in (names if names is not None else step.inputs) if n in named and named[n] in env}

    def buffer(self, label: str, shape: str, dtype: str | None, kind: str, block: int | None, whole: bool = False,
               value: str = "") -> int:
        letters = self.whole_letters if whole else self.letters
        dtype = dtype or self.workload.dtype
        key = shape, dtype, whole
        if key not in self.sizes:
            self.sizes[key] = aligned(elements(shape, letters) * ITEMSIZES[dtype])
        self.buffers.append(DraftBuffer(label, shape, dtype, 0 if kind == "disk" else self.sizes[key], kind, block, whole,
                                        value))
        return len(self.buffers) - 1

    def emit(self, kind: Kind, step: Step, reads: Mapping[str, int], writes: Mapping[str, int], scratch: Flow | None = None,
             whole: bool = False) -> None:
        """Append an operation, with the scratch that the method of that flow takes."""
        if scratch is not None and step.layer.scratch:
            writes = {**writes, **{item.name: self.scratch(step, item, whole) for item in step.layer.scratch
                                   if item.name in scratch.writes}}
        self.ops.append(DraftOp(kind, step, tuple(reads.items()), tuple(writes.items()), whole))

    def scratch(self, step: Step, item, whole: bool) -> int:
        key = (step.layer, step.rows, item.name, whole)
        if key not in self.scratch_sizes:
            letters = step.letters(self.whole_letters if whole else self.letters)
            dtype = item.dtype or self.workload.dtype
            self.scratch_sizes[key] = item.elements(step.layer, letters, self.workload.threads, ITEMSIZES[dtype])
        return self.buffer(f"{step.name}.{item.name}", str(self.scratch_sizes[key]), item.dtype, "scratch", step.block, whole)
