"""Does a plan fit a program and a batch? Asked before anything is built."""

from cllm.errors import PlanError
from cllm.plans.plan import Plan, checked_states
from cllm.plans.script import check_script
from cllm.plans.tree import WORDS, Compress, Decision, Recompute, Segment, Tape
from cllm.program.dims import NARROW
from cllm.program.program import Program
from cllm.program.workload import Workload


def check_plan(program: Program, workload: Workload, plan: Plan) -> None:
    """Refuse a plan that does not fit, saying why."""

    def refuse(where: str, must: str, got: str, do: str = "Make the plan for this model and batch.") -> None:
        raise PlanError(where, must, got, do)

    whole, workload = workload, workload.group
    if not isinstance(plan, Plan):
        refuse("strategy", "must decide on a Plan", type(plan).__name__, "Return a cllm.Plan from decide(ledger).")
    for name, value, most in (("micro_batch", plan.micro_batch, workload.batch),
                              ("loss_rows", plan.loss_rows, head_rows(program, workload))):
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most):
            refuse(f"Plan({name}=...)", f"must be None or a whole number from 1 to {most}", repr(value),
                   "Choose a value in that range.")
    if plan.script:
        if plan.ends != () or plan.spill_directory is not None:
            refuse("Plan(ends=..., spill_directory=...)", "must be empty beside a script",
                   repr((plan.ends, plan.spill_directory)), "Write into the script what is to be made and freed.")
        check_script(program, plan.script, refuse)
        return
    _check_nodes(plan.children, refuse)
    covered = [tape.block for tape in plan.tapes()]
    if covered != list(range(program.n_blocks)):
        refuse("Plan(children=...)", f"must cover blocks 0 to {program.n_blocks - 1} once, in order", str(covered))
    if not _are_decisions(plan.ends):
        refuse("Plan(ends=...)", "must be a tuple of (value name, decision)", repr(plan.ends),
               "Write (('head.logits', Cache()),).")
    if plan.spills and not (isinstance(plan.spill_directory, str) and plan.spill_directory):
        refuse("Plan(spill_directory=...)", "must name a directory when values are spilled", repr(plan.spill_directory),
               "Name a directory on a disk.")
    for decision in plan.decisions():
        if not isinstance(decision, Decision) or decision not in WORDS.values():
            refuse("Plan", "a decision must be Cache(), Recompute(), Compress('bfloat16'), Compress('int8'), "
                   "Compress('int8', 'stochastic') or OnDisk()", repr(decision), "Use one of these.")
    if type(plan.update_in_backward) is not bool:
        refuse("Plan(update_in_backward=...)", "must be True or False", repr(plan.update_in_backward), "Write one of these.")
    if plan.update_in_backward and plan.micro_batch not in (None, workload.batch):
        refuse("Plan(update_in_backward=...)", "takes the whole batch as one micro-batch", f"micro_batch={plan.micro_batch}",
               "Keep gradients, or take a smaller batch.")
    if plan.update_in_backward and whole.groups > 1:
        refuse("Plan(update_in_backward=...)", "takes the whole batch as one group", f"groups={whole.groups}",
               "Keep gradients, or take groups=1.")
    checked_states("Plan(states=...)", plan.states)
    if plan.states_on_disk and whole.processes > 1:
        refuse("Plan(states=...)", "must be 'memory' where several processes share them", repr(plan.states),
               "Keep them in memory: each process has a part.")
    before, blocks, after = program.regions
    narrow = {b for b, v in enumerate(program.block_inputs[:-1]) if program.values[v].dtype == NARROW}
    if bad := narrow & set(_compressed_inputs(plan.children)):
        refuse("Plan", "the input of a block that is bfloat16 already may not be compressed", f"that of block {min(bad)}",
               "The model computes in bfloat16: keep it, or put it on disk.")
    for tape in plan.tapes():
        _check_decisions(program, blocks[tape.block], dict(tape.decisions), f"Plan block {tape.block}", refuse, "key")
    _check_decisions(program, (*before, *after), dict(plan.ends), "Plan(ends=...)", refuse, "name")


def head_rows(program: Program, workload: Workload, batch: int | None = None) -> int:
    """Rows that the head reads, of the whole batch or of `batch` sequences of it."""
    return program.head.letters(workload.letters(batch))["N"]


def _check_nodes(nodes, refuse) -> None:
    """Only tapes and segments, in tuples, no segment empty and none whose input nobody could give it."""
    if not isinstance(nodes, tuple):
        refuse("Plan(children=...)", "must be a tuple of Tape and Segment", repr(nodes), "Write (Tape(0), Tape(1)).")
    for node in nodes:
        if isinstance(node, Segment):
            if not node.children:
                refuse("Segment(children=...)", "must hold at least one Tape or Segment", "none", "Leave the segment out.")
            _check_nodes(node.children, refuse)
            if isinstance(node.input, Recompute) and node.blocks.start > 0:
                refuse("Segment(input=...)", "must be kept, unless it is the first block's: a segment is rebuilt from it",
                       f"Recompute() of block {node.blocks.start}'s", "Let the segment begin earlier, or put it into another.")
        elif not isinstance(node, Tape) or type(node.block) is not int or not _are_decisions(node.decisions):
            refuse("Plan(children=...)", "must be a tuple of Tape and Segment", repr(node),
                   "Write Tape(0, (('ln1.y', Recompute()),)).")


def _compressed_inputs(nodes):
    """Blocks whose input is kept compressed."""
    for node in nodes:
        if isinstance(node, Segment):
            if isinstance(node.input, Compress):
                yield node.blocks.start
            yield from _compressed_inputs(node.children)
        elif isinstance(dict(node.decisions).get("input"), Compress):
            yield node.block


def _are_decisions(pairs) -> bool:
    return isinstance(pairs, tuple) and all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in pairs)


def _check_decisions(program, steps, decisions: dict, where: str, refuse, field: str) -> None:
    mine = [program.values[v] for s in steps for v in s.outputs.values()]
    named = {getattr(v, field): v for v in mine if program.readers[v.name] and v.name not in program.passed_between}
    allowed = {*named, "input"} if field == "key" else set(named)
    for name, decision in decisions.items():
        if name not in allowed:
            refuse(where, f"decisions may name {', '.join(sorted(allowed))}", name,
                   "Name values that backward reads; the outputs of blocks are decided by the segments.")
        if isinstance(decision, Compress) and name in named and named[name].dtype == NARROW:
            refuse(where, "a value that is bfloat16 already may not be compressed", name,
                   "The model computes in bfloat16: keep or drop it, or put it on disk.")
        statistics = name in named and (named[name].dtype is not None or named[name].role == "statistics")
        if isinstance(decision, Compress) and statistics:
            refuse(where, "row statistics may not be compressed", name, "They are small: keep or drop them.")
        if name == "input" and isinstance(decision, Recompute) and steps[0].block > 0:
            refuse(where, "the input of a block cannot be rebuilt inside it, but for the first block's", "Recompute()",
                   "Put the block into a Segment that begins earlier.")
