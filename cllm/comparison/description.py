"""What a plan looks like, as plain data: its timeline by kind of site, and its decisions as a grid."""

from collections import Counter, defaultdict

from cllm.plans.plan import Plan
from cllm.program.kinds import Kind
from cllm.program.parts import Value
from cllm.program.program import Program
from cllm.schedule.operations import Schedule
from cllm.schedule.report import MemoryReport

# From the bottom of a timeline up. A value's group comes from its declaration; the last two are no values.
GRADIENTS, SCRATCH, OTHER = "gradients", "scratch", "other"
KINDS = ("residual", "norm", "attn", "mlp", "act", "statistics", "probs", "logits", OTHER, GRADIENTS, SCRATCH)
KEPT, REBUILT, SPILLED, ABSENT = "kept", "rebuilt", "spilled", "absent"


def describe_timeline(memory: MemoryReport, program: Program) -> dict:
    """Predicted bytes alive during each operation.

    Returns
    -------
    dict
        ``operations`` (names, of one micro-batch and the epilogue), ``epilogue`` (position of its first), ``bytes``
        (of each operation), ``by_kind`` (the same parted by kind of site; a kind that never has bytes is left out).
    """
    schedule = memory.schedule
    parts: dict[str, list[int]] = defaultdict(lambda: [0] * len(schedule.ops))
    for buffer in schedule.buffers:
        if buffer.nbytes:
            part = parts[_kind(buffer.kind, program.values.get(_value_name(buffer.label)))]
            for position in range(buffer.first, buffer.last + 1):
                part[position] += buffer.nbytes
    return {"operations": [op.name for op in schedule.ops], "epilogue": schedule.epilogue,
            "bytes": list(memory.arena.live_bytes), "by_kind": {kind: parts[kind] for kind in KINDS if kind in parts}}


def describe_plan(plan: Plan, memory: MemoryReport, program: Program) -> dict:
    """What becomes of every value that some backward reads.

    Returns
    -------
    dict
        ``micro_batch``, ``micro_batches``, ``loss_rows``; ``sites``, one for each name inside a block: ``site``,
        ``group``, ``meaning``, and ``blocks``, a word for each block; ``ends``, the values outside the blocks: ``site``,
        ``group``, ``meaning``, ``word``; ``rebuilds``, for each block how often a micro-batch runs that step of it again
        that it runs again most often. A word is kept, rebuilt, spilled, the format of a compressed copy, or absent: an
        optional value that the backward's own kernel does without.
    """
    schedule = memory.schedule
    words = _words(memory)
    sites: dict[str, dict] = {}
    ends = []
    for value in program.values.values():
        if not program.readers[value.name]:
            continue
        word = words.get(value.name, ABSENT)
        about = {"site": value.key if value.block is not None else value.name, "group": value.group,
                 "meaning": value.meaning}
        if value.block is None:
            ends.append({**about, "word": word})
        else:
            site = sites.setdefault(value.key, {**about, "blocks": [ABSENT] * program.n_blocks})
            site["blocks"][value.block] = word
    return {"micro_batch": schedule.micro_batch, "micro_batches": schedule.n_micro, "loss_rows": schedule.loss_rows,
            "exact": plan.exact, "sites": list(sites.values()), "ends": ends, "rebuilds": _rebuilds(schedule, program.n_blocks)}


def _rebuilds(schedule: Schedule, n_blocks: int) -> list[int]:
    """For each block, the most that one of its steps is rebuilt."""
    times = Counter((op.step.block, op.step.name) for op in schedule.ops if op.kind == Kind.REBUILD)
    most = [0] * n_blocks
    for (block, _), count in times.items():
        if block is not None:
            most[block] = max(most[block], count)
    return most


def _words(memory: MemoryReport) -> dict[str, str]:
    """For each value with a buffer, the strongest thing that is done with it: narrowed, put on disk, kept, rebuilt."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for buffer in memory.schedule.buffers:
        found[_value_name(buffer.label)][buffer.kind] = buffer.label.rpartition(" ")[2]
    words = {}
    for name, kinds in found.items():
        if "packed" in kinds:
            words[name] = kinds["packed"]  # "ln1.y as bfloat16"
        else:
            words[name] = (SPILLED if "disk" in kinds else REBUILT if "rebuilt" in kinds and "kept" not in kinds else KEPT)
    return words


def _value_name(label: str) -> str:
    return label.partition(" ")[0]


def _kind(kind: str, value: Value | None) -> str:
    if kind in ("gradient", "stash", "weights"):
        return GRADIENTS
    if kind in ("scratch", "states"):
        return SCRATCH
    return value.group if value is not None and value.group in KINDS else OTHER
