"""From a schedule back to a script: whatever a tree says, written out."""

from collections import defaultdict

from cllm.errors import PlanError
from cllm.plans.script import Line, Script
from cllm.program.kinds import Kind
from cllm.program.program import Program
from cllm.schedule.operations import Schedule


def written_out(program: Program, schedule: Schedule) -> Script:
    """The script whose schedule runs the same operations in the same order, each value rebuilt where that one rebuilds it.

    Where a schedule rebuilds a value of which it keeps a copy (a norm's statistics, made again beside its rows), the script
    takes the later one, so it may need less room.

    Raises
    ------
    PlanError
        When the schedule compresses or spills.
    """
    lines: list[Line] = []
    alive: dict[str, set[int]] = defaultdict(set)
    left = list(program.steps)

    def backward(index: int) -> None:
        while left and left[-1].index >= index:
            lines.append(("backward", left.pop().name))

    for op in schedule.ops[:schedule.epilogue]:
        step = op.step
        if op.kind in (Kind.FORWARD, Kind.REBUILD):
            made = [schedule.buffers[b] for _, b in op.writes if schedule.buffers[b].value]
            lines += [("free", b.value) for b in made if alive[b.value]]
            optional = (b.value for b in made if program.values[b.value].optional)
            lines.append((str(op.kind), step.name, *optional))
            for buffer in made:
                alive[buffer.value].add(buffer.index)
        elif op.kind in (Kind.ACCUMULATE, Kind.STASH):
            backward(step.index + 1)
            lines.append(("accumulate", step.name))
        elif op.kind in (Kind.BACKWARD, Kind.COPY, Kind.ADD):
            backward(step.index)
        elif op.kind != Kind.ZERO:
            raise PlanError("a script", "holds neither compressed values nor such on disk", str(op.kind),
                            "Write out a plan without them.")
        for b in op.frees:
            value = schedule.buffers[b].value
            if b in alive[value]:
                alive[value].discard(b)
                lines += [("free", value)] if not alive[value] else []
    backward(0)
    return Script(tuple(_joined(lines)))


def _joined(lines: list[Line]) -> list[Line]:
    """The lines with one for both where nothing is rebuilt between accumulate and backward."""
    out: list[Line] = []
    since = None  # where the last accumulate stands, nothing but what is freed after it
    for line in lines:
        if line[0] == "backward" and since is not None and out[since][1] == line[1]:
            out[since] = line
        else:
            out.append(line)
        if line[0] != "free":
            since = len(out) - 1 if line[0] == "accumulate" else None
    return out
