"""Trees of segments in words: what two of them do differently."""

from collections import defaultdict

from cllm.plans.script import words_of_blocks
from cllm.plans.tree import Cache, Decision, Segment, Tape, word_of


def explain_ends(mine: dict[str, Decision], theirs: dict[str, Decision]) -> list[str]:
    """A line for each value outside the blocks that the second plan decides otherwise; unnamed ones have their default."""
    words = [{name: word_of(decision) for name, decision in ends.items()} for ends in (mine, theirs)]
    return [f"{name}: {words[0].get(name, 'default')} -> {words[1].get(name, 'default')}" for name in sorted({*mine, *theirs})
            if words[0].get(name) != words[1].get(name)]


def explain_trees(mine: tuple[Tape | Segment, ...], theirs: tuple[Tape | Segment, ...]) -> list[str]:
    """A line for each value and each run of blocks that the second tree treats otherwise than the first."""
    first, second = _treatment(mine), _treatment(theirs)
    changes = defaultdict(list)
    for block in sorted(set(first) | set(second)):
        for key in sorted(set(first.get(block, ())) | set(second.get(block, ()))):
            before, after = first.get(block, {}).get(key), second.get(block, {}).get(key)
            if before != after:
                unnamed = "default" if "cache" in (before, after) else "cache"  # optional values are left out unless named
                changes[key, before or unnamed, after or unnamed].append(block)
    return [f"{words_of_blocks(blocks)} {key}: {before} -> {after}" for (key, before, after), blocks in changes.items()]


def _treatment(children: tuple[Tape | Segment, ...]) -> dict[int, dict[str, str]]:
    """For each block, each value's decision in a word, and under ``segment`` how deep it is nested and from where."""
    found: dict[int, dict[str, str]] = {}

    def visit(nodes: tuple[Tape | Segment, ...], path: str) -> None:
        for node in nodes:
            if isinstance(node, Tape):
                words = {key: word_of(d) for key, d in node.decisions}
                found[node.block] = {**words, **({"segment": path} if path else {})}
            else:
                blocks = node.blocks
                kept = "" if node.input == Cache() else f" as {word_of(node.input)}"
                place = f"rebuilt from the input of {blocks.start}{kept}"
                visit(node.children, f"{path}, {place}" if path else place)

    visit(children, "")
    return found
