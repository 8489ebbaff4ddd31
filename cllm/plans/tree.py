"""Decisions and the tree that holds them: pure data.

A plan's children cover the blocks in order. A child is either

* a `Tape`: one block whose forward leaves on the tape what backward reads, with a decision for each value; or
* a `Segment`: a run of children that forward only sweeps through. Nothing of its inside survives, only its input. When
  backward arrives, the segment is opened: its children are run forward (tapes tape, segments are swept again), then
  backward in reverse.

A segment inside a segment is nested recompute; a block input that is kept, dropped and kept again needs nothing special.
"""

from dataclasses import dataclass

from cllm.checks import shown, whole_number


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
    rounding : {"nearest", "stochastic"}
        To nearest, ties to even; or, for int8, up or down at random so that the mean is the value. The random numbers
        are those of (the executor's seed, step, value, place in the whole batch).
    """

    dtype: str = "bfloat16"
    rounding: str = "nearest"


@dataclass(frozen=True, slots=True)
class OnDisk:
    """Put the value on disk while other work runs, and fetch it before backward asks for it."""


Decision = Cache | Recompute | Compress | OnDisk
WORDS = {"cache": Cache(), "recompute": Recompute(), "bfloat16": Compress("bfloat16"), "int8": Compress("int8"),
         "int8-stochastic": Compress("int8", "stochastic"), "spill": OnDisk()}


@dataclass(frozen=True, slots=True)
class Tape:
    """One block with its decisions, pairs of (value's name inside the block, decision); what is not named is cached.

    The name ``input`` stands for the block's input, which only the first block may drop: the steps before it make it again.
    """

    block: int
    decisions: tuple[tuple[str, Decision], ...] = ()

    def __post_init__(self):
        if type(self.block) is not int and (number := whole_number(self.block)) is not None:
            object.__setattr__(self, "block", number)

    @property
    def blocks(self) -> range:
        """The blocks it covers."""
        return range(self.block, self.block + 1)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of children that is swept in forward and opened in backward; `input` decides on the input that it keeps, which
    the steps before the blocks make again where that of the first block is dropped."""

    children: tuple["Tape | Segment", ...]
    input: Decision = Cache()

    @property
    def blocks(self) -> range:
        """The blocks it covers."""
        first = last = self
        while isinstance(first, Segment):
            first = first.children[0]
        while isinstance(last, Segment):
            last = last.children[-1]
        return range(first.block, last.block + 1)


def word_of(decision: Decision) -> str:
    """A decision in one word: cache, recompute, bfloat16, int8, int8-stochastic, spill."""
    return next(word for word, known in WORDS.items() if known == decision)


def node_out(node: Tape | Segment) -> dict:
    """A node as plain data."""
    if isinstance(node, Tape):
        return {"block": node.block, "decisions": {key: word_of(d) for key, d in node.decisions}}
    return {"input": word_of(node.input), "children": [node_out(c) for c in node.children]}


def node_in(data: dict) -> Tape | Segment:
    """The node that `node_out` wrote; `ValueError` for anything else."""
    if isinstance(data, dict) and "block" in data:
        return Tape(read_number(data, "block"), read_decisions(data, "decisions"))
    return Segment(tuple(node_in(c) for c in read(data, "children", list)), read_word(read(data, "input", str)))


def read_decisions(data: dict, key: str) -> tuple[tuple[str, Decision], ...]:
    """Pairs of (name, decision)."""
    return tuple((name, read_word(word)) for name, word in read(data, key, dict).items())


def read_word(word) -> Decision:
    """The decision of a word."""
    if not isinstance(word, str) or word not in WORDS:
        raise ValueError(f"{shown(word)} where one of {', '.join(WORDS)} belongs")
    return WORDS[word]


def read_number(data: dict, key: str) -> int:
    """A whole number from 0."""
    value = read(data, key, int)
    if isinstance(value, bool) or value < 0:
        raise ValueError(f"{shown(value)} as {key!r}")
    return value


def read(data: dict, key: str, kind: type):
    """What stands under a key, of that kind."""
    if not isinstance(data, dict) or key not in data or not isinstance(data[key], kind):
        raise ValueError(f"{shown(data[key])} as {key!r}" if isinstance(data, dict) and key in data else f"no {key!r}")
    return data[key]


def tree_lines(nodes: tuple[Tape | Segment, ...], indent: str) -> list[str]:
    """Nodes in words, a line for each run of blocks that are treated alike."""
    lines: list[str] = []
    run: list[Tape] = []

    def close() -> None:
        if run:
            first, last = run[0].block, run[-1].block
            named = {}
            for key, decision in run[0].decisions:
                named.setdefault(word_of(decision), []).append(key)
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
            kept = "" if node.input == Cache() else f" ({word_of(node.input)})"
            lines.append(f"{indent}segment of blocks {node.blocks.start}-{node.blocks.stop - 1}, rebuilt from its input{kept}:")
            lines += tree_lines(node.children, indent + "  ")
    close()
    return lines
