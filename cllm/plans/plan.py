"""What is decided: `Plan`, a tree of segments with a decision for each value, or a script; pure data."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cllm.checks import shown, whole_number
from cllm.errors import PlanError
from cllm.files import whole
from cllm.plans.explain import explain_ends, explain_trees
from cllm.plans.script import Script
from cllm.plans.tree import (
    Compress,
    Decision,
    OnDisk,
    Segment,
    Tape,
    node_in,
    node_out,
    read,
    read_decisions,
    read_number,
    tree_lines,
    word_of,
)

FORMAT = 1  # of plans as data


def checked_states(where: str, states) -> str:
    """Where an optimizer's states are: "memory", or "disk:DIR"; what is neither is refused.

    Raises
    ------
    PlanError
    """
    if isinstance(states, str) and (states == "memory" or states.startswith("disk:") and states != "disk:"):
        return states
    raise PlanError(where, "must be 'memory' or 'disk:DIR'", shown(states), "Name a directory on a disk, as in disk:/var/tmp.")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan costs: bytes of the arena, bytes in total, seconds of one step over the whole batch, and what those rest
    on: declared work, or measured and when; and whether the seconds have a backward for the norm of all gradients alone."""

    arena_bytes: int
    total_bytes: int
    seconds: float
    source: str = "declared work"
    measures_norm: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided about one training step.

    Parameters
    ----------
    children : tuple of Tape and Segment, or Script
        Cover all blocks in order; or everything written out.
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    loss_rows : int or None
        Rows of the head in work at once; None lets the schedule choose.
    ends : tuple of (value name, Decision)
        Decisions for values outside the blocks; what is not named is cached, optional values are left out.
    spill_directory : str or None
        Where spilled values go; needed by plans that spill.
    update_in_backward : bool
        A parameter is updated as soon as backward needs it no more, and its gradient is room in the arena; it takes the whole
        batch as one micro-batch.
    states : str
        Where the optimizer's states are: "memory", or "disk:DIR".
    estimate : Estimate or None
        Set by `cllm.plan`: what the plan costs for its workload. Not part of equality.
    cut_is_exact : bool
        Set by `cllm.plan`: whether this plan's micro-batches change no bit of this model. Not part of equality.
    fingerprint : str or None
        Set by `cllm.plan`: of the program and workload it was made for; a plan is refused for another. Not part of equality.
    limit : int or None
        Set by `MemoryBudget`: total bytes that it kept within; for "auto", what it found free. Not part of equality.
    """

    children: tuple[Tape | Segment, ...] | Script
    micro_batch: int | None = None
    loss_rows: int | None = None
    ends: tuple[tuple[str, Decision], ...] = ()
    spill_directory: str | None = None
    update_in_backward: bool = False
    states: str = "memory"
    estimate: Estimate | None = field(default=None, compare=False)
    cut_is_exact: bool = field(default=True, compare=False)
    fingerprint: str | None = field(default=None, compare=False)
    limit: int | None = field(default=None, compare=False)

    def __post_init__(self):
        for name in ("micro_batch", "loss_rows"):  # NumPy's integers become Python's; what is none is refused with the workload
            number = whole_number(getattr(self, name))
            if number is not None:
                object.__setattr__(self, name, number)

    @property
    def exact(self) -> bool:
        """Whether gradients equal those of CacheAll to the last bit.

        Where the batch is cut, it takes layers that state that they sum rows in order (`Layer.in_order`).
        """
        return self.cut_is_exact and not any(isinstance(d, Compress) for d in self.decisions())

    @property
    def spills(self) -> bool:
        """Whether any value goes to disk."""
        return any(isinstance(d, OnDisk) for d in self.decisions())

    @property
    def script(self) -> Script | None:
        """What is written out; None for a tree."""
        return self.children if isinstance(self.children, Script) else None

    @property
    def tree(self) -> tuple[Tape | Segment, ...]:
        """The nodes of the tree; none for a script."""
        return () if self.script else self.children

    @property
    def states_on_disk(self) -> bool:
        """Whether the optimizer's states are on disk."""
        return self.states != "memory"

    @property
    def mode(self) -> str:
        """What its memory is that of: a whole step, or loss and gradients, where an update takes no room."""
        return "step" if self.update_in_backward or self.states_on_disk else "train"

    def decisions(self) -> Iterator[Decision]:
        """Every decision that is named."""
        yield from (decision for _, decision in self.ends)
        stack = list(self.tree)
        while stack:
            node = stack.pop()
            if isinstance(node, Tape):
                yield from (decision for _, decision in node.decisions)
            else:
                yield node.input
                stack.extend(node.children)

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations, their gradients and scratch at the peak."""
        return self._estimated().arena_bytes

    @property
    def total_bytes(self) -> int:
        """Arena, parameters, gradients, optimizer state, batch and tables together."""
        return self._estimated().total_bytes

    @property
    def predicted_seconds(self) -> float:
        """Seconds of one step, the optimizer's update included."""
        return self._estimated().seconds

    def _estimated(self) -> Estimate:
        if self.estimate is None:
            raise PlanError("Plan", "must have been made by cllm.plan, which knows the workload", "a bare plan",
                            "Call cllm.plan(model_or_config, batch_size, seq_len, strategy=this_plan).")
        return self.estimate

    def tapes(self) -> Iterator[Tape]:
        """All tapes of the tree in block order."""
        stack = list(reversed(self.tree))
        while stack:
            node = stack.pop()
            if isinstance(node, Tape):
                yield node
            else:
                stack.extend(reversed(node.children))

    def table(self) -> str:
        """The plan in words: one line per run of blocks that are treated alike, then what it costs."""
        lines = [f"micro-batch {self.micro_batch or 'whole batch'}, loss rows {self.loss_rows or 'automatic'}"]
        lines += self.script.table() if self.script else tree_lines(self.tree, "")
        lines += [f"{name}: {word_of(decision)}" for name, decision in self.ends]
        if self.update_in_backward:
            measures = self.estimate is not None and self.estimate.measures_norm
            lines.append("parameters are updated in backward, gradients are room in the arena"
                         + ("; a backward before is for the norm of all gradients" if measures else ""))
        if self.states_on_disk:
            lines.append(f"the optimizer's states are on disk in {self.states.partition(':')[2]}")
        if self.estimate is not None:
            lines.append(f"arena {self.arena_bytes / 1e6:.1f} MB, total {self.total_bytes / 1e6:.1f} MB, "
                         f"predicted {self.predicted_seconds:.3f} s a step ({self.estimate.source})")
        if self.limit is not None:
            lines.append(f"within a limit of {self.limit:,} bytes in total")
        return "\n".join(lines)

    def explain(self, other: "Plan") -> str:
        """What changes from this plan to another, value by value and block by block, and what it buys."""
        lines = [f"{name}: {mine or unset} -> {theirs or unset}" for name, mine, theirs, unset in (
            ("micro-batch", self.micro_batch, other.micro_batch, "whole batch"),
            ("loss rows", self.loss_rows, other.loss_rows, "automatic"),
            ("directory of spilled values", self.spill_directory, other.spill_directory, "none"),
            ("update in backward", self.update_in_backward, other.update_in_backward, "no"),
            ("states", self.states, other.states, "memory")) if mine != theirs]
        lines += explain_ends(dict(self.ends), dict(other.ends))
        if self.script and other.script:
            lines += self.script.explain(other.script)
        elif self.script or other.script:
            lines.append(f"{'a script' if self.script else 'a tree'} -> {'a script' if other.script else 'a tree'}")
        else:
            lines += explain_trees(self.tree, other.tree)
        if not lines:
            lines.append("the plans decide the same")
        if self.estimate is not None and other.estimate is not None:
            nbytes = other.total_bytes - self.total_bytes
            seconds = other.predicted_seconds - self.predicted_seconds
            price = f", {abs(seconds) / abs(nbytes) * 1e9:.3f} s for each GB" if nbytes * seconds < 0 else ""
            lines.append(f"in all: {nbytes / 1e6:+.1f} MB, {seconds:+.3f} s a step{price}")
        return "\n".join(lines)

    def to_json(self, path: str | Path) -> None:
        """Write the plan to a file that `from_json` reads, whole or not at all.

        Raises
        ------
        PlanError
            When it cannot be written.
        """
        try:
            with whole(path) as place:
                place.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        except (OSError, ValueError, TypeError) as error:
            raise PlanError(f"Plan.to_json({shown(path)})", "must be a place for a file that can be written",
                            getattr(error, "strerror", None) or str(error), "Choose another path, or make room.") from error

    @staticmethod
    def from_json(path: str | Path) -> "Plan":
        """Read a plan.

        Raises
        ------
        PlanError
            When the file is missing or does not hold a plan.
        """
        try:
            return _plan_in(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise PlanError(f"Plan.from_json({shown(path)})", "must be a file that Plan.to_json wrote",
                            f"{type(error).__name__}: {error}", "Write the plan again.") from error

    def to_dict(self) -> dict:
        """The plan as plain data."""
        return {"plan": FORMAT, "fingerprint": self.fingerprint, "micro_batch": self.micro_batch, "loss_rows": self.loss_rows,
                "spill_directory": self.spill_directory,
                **({"update_in_backward": True} if self.update_in_backward else {}),
                **({"states": self.states} if self.states_on_disk else {}),
                "ends": {name: word_of(d) for name, d in self.ends},
                **({"script": [list(line) for line in self.script.order]} if self.script else
                   {"children": [node_out(c) for c in self.children]})}

    @staticmethod
    def from_dict(data: dict) -> "Plan":
        """The plan that `to_dict` wrote.

        Raises
        ------
        PlanError
            When the data is none of that.
        """
        try:
            return _plan_in(data)
        except (ValueError, RecursionError) as error:
            raise PlanError("Plan.from_dict(data)", "must be what Plan.to_dict gave", str(error),
                            "Make the plan again.") from error


def _plan_in(data: dict) -> Plan:
    """The plan that `Plan.to_dict` wrote; `ValueError`, or `RecursionError` for one without end, for anything else."""
    if read_number(data, "plan") != FORMAT:
        raise ValueError(f"plan format {data['plan']!r} is not {FORMAT}")
    micro_batch, loss_rows = (None if read(data, key, int | None) is None else read_number(data, key)
                              for key in ("micro_batch", "loss_rows"))
    return Plan(_children_in(data), micro_batch, loss_rows, read_decisions(data, "ends"),
                read(data, "spill_directory", str | None),
                read({"update_in_backward": False, **data}, "update_in_backward", bool),
                read({"states": "memory", **data}, "states", str), fingerprint=read(data, "fingerprint", str | None))


def _children_in(data: dict) -> tuple[Tape | Segment, ...] | Script:
    if "script" not in data:
        return tuple(node_in(c) for c in read(data, "children", list))
    lines = read(data, "script", list)
    if "children" in data or not all(isinstance(line, list) and all(isinstance(word, str) for word in line) for line in lines):
        raise ValueError("a script that is none, or beside a tree")
    return Script(lines)
