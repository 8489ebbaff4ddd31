"""What is decided: `Plan`, a tree of segments with a decision for each value, pure data.

A plan's ``children`` cover the blocks in order. A child is either

* a `Tape`: one block whose forward leaves on the tape what backward reads, with a decision for each value; or
* a `Segment`: a run of children that forward only sweeps through. Nothing of its inside survives, only its input. When
  backward arrives, the segment is opened: its children are run forward (tapes tape, segments are swept again), then
  backward in reverse.

A segment inside a segment is nested recompute; a block input that is kept, dropped and kept again needs nothing special.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cllm.errors import PlanError


@dataclass(frozen=True, slots=True)
class Cache:
    """Keep the value from forward until backward has read it."""


@dataclass(frozen=True, slots=True)
class Recompute:
    """Drop the value after forward; rebuild it from what is at hand when backward asks for it."""


@dataclass(frozen=True, slots=True)
class Compress:
    """Keep a narrow copy; backward reads what it expands to, so gradients are close and not equal.

    Parameters
    ----------
    dtype : {"bfloat16", "int8"}
        int8 has a scale per 128 elements.
    """

    dtype: str = "bfloat16"


@dataclass(frozen=True, slots=True)
class Spill:
    """Put the value on disk while other work runs, and fetch it before backward asks for it."""


Decision = Cache | Recompute | Compress | Spill
WORDS = {"cache": Cache(), "recompute": Recompute(), "bfloat16": Compress("bfloat16"), "int8": Compress("int8"),
         "spill": Spill()}


@dataclass(frozen=True, slots=True)
class Tape:
    """One block with its decisions, pairs of (value's name inside the block, decision); what is not named is cached.

    The name ``input`` stands for the block's input.
    """

    block: int
    decisions: tuple[tuple[str, Decision], ...] = ()

    @property
    def blocks(self) -> range:
        """The blocks it covers."""
        return range(self.block, self.block + 1)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of children that is swept in forward and opened in backward; `input` decides on the input that it keeps."""

    children: tuple["Tape | Segment", ...]
    input: Decision = Cache()

    @property
    def blocks(self) -> range:
        """The blocks it covers."""
        return range(self.children[0].blocks.start, self.children[-1].blocks.stop)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan costs: bytes of the arena, bytes in total, seconds of one step over the whole batch."""

    arena_bytes: int
    total_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided about one training step.

    Parameters
    ----------
    children : tuple of Tape and Segment
        Cover all blocks in order.
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    loss_rows : int or None
        Rows of the head in work at once; None lets the schedule choose.
    ends : tuple of (value name, Decision)
        Decisions for values outside the blocks; what is not named is cached, optional values are left out.
    spill_directory : str or None
        Where spilled values go; needed by plans that spill.
    estimate : Estimate or None
        Set by `cllm.plan`: what the plan costs for its workload. Not part of equality.
    """

    children: tuple[Tape | Segment, ...]
    micro_batch: int | None = None
    loss_rows: int | None = None
    ends: tuple[tuple[str, Decision], ...] = ()
    spill_directory: str | None = None
    estimate: Estimate | None = field(default=None, compare=False)

    @property
    def exact(self) -> bool:
        """Whether gradients equal those of CacheAll to the last bit."""
        return not any(isinstance(d, Compress) for d in self.decisions())

    @property
    def spills(self) -> bool:
        """Whether any value goes to disk."""
        return any(isinstance(d, Spill) for d in self.decisions())

    def decisions(self) -> Iterator[Decision]:
        """Every decision that is named."""
        yield from (decision for _, decision in self.ends)
        stack = list(self.children)
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
        """Seconds of one step, without the optimizer's."""
        return self._estimated().seconds

    def _estimated(self) -> Estimate:
        if self.estimate is None:
            raise PlanError("Plan", "must have been made by cllm.plan, which knows the workload", "a bare plan",
                            "Call cllm.plan(model_or_config, batch_size, seq_len, strategy=this_plan).")
        return self.estimate

    def tapes(self) -> Iterator[Tape]:
        """All tapes of the tree in block order."""
        stack = list(reversed(self.children))
        while stack:
            node = stack.pop()
            if isinstance(node, Tape):
                yield node
            else:
                stack.extend(reversed(node.children))

    def table(self) -> str:
        """The plan in words: one line per run of blocks that are treated alike, then what it costs."""
        lines = [f"micro-batch {self.micro_batch or 'whole batch'}, loss rows {self.loss_rows or 'automatic'}"]
        lines += _tree_lines(self.children, "")
        lines += [f"{name}: {_words(decision)}" for name, decision in self.ends]
        if self.estimate is not None:
            lines.append(f"arena {self.arena_bytes / 1e6:.1f} MB, total {self.total_bytes / 1e6:.1f} MB, "
                         f"predicted {self.predicted_seconds:.3f} s a step")
        return "\n".join(lines)

    def to_json(self, path: str | Path) -> None:
        """Write the plan to a file that `from_json` reads."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def from_json(path: str | Path) -> "Plan":
        """Read a plan.

        Raises
        ------
        PlanError
            When the file is missing or does not hold a plan.
        """
        try:
            return Plan.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"Plan.from_json({str(path)!r})", "must be a file that Plan.to_json wrote",
                            f"{type(error).__name__}: {error}", "Write the plan again.") from error

    def to_dict(self) -> dict:
        """The plan as plain data."""
        return {"plan": 1, "micro_batch": self.micro_batch, "loss_rows": self.loss_rows,
                "spill_directory": self.spill_directory,
                "ends": {name: _words(d) for name, d in self.ends}, "children": [_node_out(c) for c in self.children]}

    @staticmethod
    def from_dict(data: dict) -> "Plan":
        """The plan that `to_dict` wrote."""
        if data.get("plan") != 1:
            raise ValueError(f"plan format {data.get('plan')!r} is not 1")
        return Plan(tuple(_node_in(c) for c in data["children"]), data["micro_batch"], data["loss_rows"],
                    tuple((name, WORDS[word]) for name, word in data["ends"].items()), data["spill_directory"])


def _words(decision: Decision) -> str:
    return next(word for word, known in WORDS.items() if known == decision)


def _node_out(node: Tape | Segment) -> dict:
    if isinstance(node, Tape):
        return {"block": node.block, "decisions": {key: _words(d) for key, d in node.decisions}}
    return {"input": _words(node.input), "children": [_node_out(c) for c in node.children]}


def _node_in(data: dict) -> Tape | Segment:
    if "block" in data:
        return Tape(data["block"], tuple((key, WORDS[word]) for key, word in data["decisions"].items()))
    return Segment(tuple(_node_in(c) for c in data["children"]), WORDS[data["input"]])


def _tree_lines(nodes: tuple[Tape | Segment, ...], indent: str) -> list[str]:
    lines: list[str] = []
    run: list[Tape] = []

    def close() -> None:
        if run:
            first, last = run[0].block, run[-1].block
            named = {}
            for key, decision in run[0].decisions:
                named.setdefault(_words(decision), []).append(key)
            what = "; ".join(f"{word} {', '.join(keys)}" for word, keys in named.items()) or "cache everything"
            lines.append(f"{indent}block{'s' if last > first else ''} {first}{f'-{last}' if last > first else ''}: {what}")
            run.clear()

    for node in nodes:
        if isinstance(node, Tape):
            if run and run[-1].decisions != node.decisions:
                close()
            run.append(node)
        else:
            close()
            kept = "" if node.input == Cache() else f" ({_words(node.input)})"
            lines.append(f"{indent}segment of blocks {node.blocks.start}-{node.blocks.stop - 1}, rebuilt from its input{kept}:")
            lines += _tree_lines(node.children, indent + "  ")
    close()
    return lines
