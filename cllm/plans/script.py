"""A plan written out: the order of everything that a step does with its values, as plain data."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from cllm.program.program import Program

MAKES = ("forward", "rebuild")
WORDS = (*MAKES, "accumulate", "backward", "free")
Line = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """What runs in a micro-batch, line by line; it may be passed wherever a strategy or a plan is.

    A line is a word, a name and, where `forward` or `rebuild` is to make optional values, their names:

    * ``forward STEP``: the step runs for the first time; without the line where nobody reads what it makes, as of most heads.
    * ``rebuild STEP``: it runs again. All that it makes must have been freed before: there are never two copies of a value.
    * ``backward STEP``: its gradients are made, those of its parameters too. Every step has this line, the last step first.
    * ``accumulate STEP``, directly before in that order: those of its parameters alone, so that what the others read may be
      rebuilt after it.
    * ``free VALUE``: nobody reads the value any more, until its step is rebuilt.

    Room is taken from the line that makes a value to the last that reads it, which may come before its `free`; what nobody
    reads is not made, and its line does nothing.

    Parameters
    ----------
    order : tuple of lines
        Each a tuple of str; lists become tuples.
    """

    order: tuple[Line, ...]

    def __post_init__(self):
        if isinstance(self.order, (list, tuple)):
            object.__setattr__(self, "order", tuple(tuple(line) if isinstance(line, list) else line for line in self.order))

    def table(self) -> list[str]:
        """The script in words: how many lines of each kind, then what is rebuilt how often, runs of like blocks folded."""
        counts = Counter(line[0] for line in self.order)
        lines = [f"a script of {len(self.order)} lines: {', '.join(f'{counts[w]} {w}' for w in WORDS if counts[w])}"]
        treated: dict[int, tuple[str, ...]] = {}
        for (block, name), times in self.rebuilt().items():
            treated[block] = (*treated.get(block, ()), name + (f" {times} times" if times > 1 else ""))
        for (what, _), run in groupby(sorted(treated), key=lambda b: (treated[b], b if b < 0 else 0)):
            lines.append(f"{words_of_blocks([*run])}: rebuild {', '.join(what)}")
        return lines

    def rebuilt(self) -> dict[tuple[int, str], int]:
        """How often each step is rebuilt, by its block, -1 outside of blocks, and its name inside, in the order of forward."""
        order = {line[1]: number for number, line in enumerate(self.order) if line[0] == "forward"}
        times = Counter(line[1] for line in self.order if line[0] == "rebuild")
        return {_place(step): times[step] for step in sorted(times, key=lambda s: order.get(s, -1))}

    def explain(self, other: "Script") -> list[str]:
        """A line for each step that the other rebuilds more or less often, and for another order of the same."""
        mine, theirs = self.rebuilt(), other.rebuilt()
        changed: dict[tuple[str, int, int], list[int]] = {}
        for block, name in dict.fromkeys((*mine, *theirs)):
            times = mine.get((block, name), 0), theirs.get((block, name), 0)
            if times[0] != times[1]:
                changed.setdefault((name, *times), []).append(block)
        lines = [f"{words_of_blocks(sorted(blocks))} {name}: rebuilt {before} -> {after} times"
                 for (name, before, after), blocks in changed.items()]
        return lines or ["the scripts rebuild the same, at other times"] if self != other else []


def words_of_blocks(blocks: list[int]) -> str:
    """Block numbers, rising, folded: ``blocks 0-3, 7``; -1 is outside of blocks."""
    parts = []
    for _, group in groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
        run = [block for _, block in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return "outside blocks" if blocks == [-1] else f"block{'s' if len(blocks) > 1 else ''} {', '.join(parts)}"


def _place(step: str) -> tuple[int, str]:
    first, _, rest = step.partition(".")
    number, _, name = rest.partition(".")
    return (int(number), name) if first == "blocks" and number.isdecimal() and name else (-1, step)


def check_script(program: Program, script: Script, refuse: Callable[..., None]) -> None:
    """Refuse a script that does not fit a program: every value is there when it is read, none twice.

    `refuse` takes where, what must hold, what was got, and what to do.
    """
    order = script.order
    if not isinstance(order, tuple) or not all(isinstance(line, tuple) and len(line) > 1 and set(map(type, line)) == {str}
                                               for line in order):
        refuse("Script(order)", "must be a tuple of lines of words", repr(order)[:200],
               "Write (('forward', 'embed'), ...), with every step and value named as the program names it.")
    steps = {s.name: s for s in program.steps}
    here, ran, accumulated, left = set(), set(), None, list(program.steps)
    for number, (word, name, *optional) in enumerate(order):
        where = f"Script line {number}, {word} {name}"

        def need(values, where=where) -> None:
            if missing := [v for v in values if v not in here and not program.values[v].optional]:
                refuse(where, f"needs {', '.join(missing)}", "freed, or not made yet", "Make it before this line.")

        if word not in WORDS or name not in (program.values if word == "free" else steps) or optional and word not in MAKES:
            kind = "value" if word == "free" else "step"
            refuse(where, f"a line must be one of {', '.join(WORDS)} and a {kind} of the program"
                   + (", then optional values that it makes" if word in MAKES else ""), " ".join(order[number]),
                   "Check the spelling.")
        if word == "free":
            need([name])
            if name not in here:
                refuse(where, "frees what is there", "an optional value that is not", "Leave the line out.")
            here.discard(name)
            continue
        step = steps[name]
        if word in MAKES:
            if (name in ran) != (word == "rebuild"):
                refuse(where, "a step runs forward once, and is rebuilt after that",
                       "a second forward" if word == "forward" else "a rebuild before it ran", "Change the word.")
            outputs = [v for v in step.outputs.values() if not program.values[v].optional or v in optional]
            if stray := set(optional) - {v for v in step.outputs.values() if program.values[v].optional}:
                refuse(where, "behind the step's name may stand its optional values", ", ".join(sorted(stray)),
                       "Leave them out.")
            if twice := [v for v in outputs if v in here]:
                refuse(where, f"{', '.join(twice)} must have been freed", "a second copy", "Free it before this line.")
            need(step.inputs.values())
            here.update(outputs)
            ran.add(name)
            continue
        if not left or step is not left[-1] or word == "accumulate" and accumulated is step:
            refuse(where, f"must be backward {left[-1].name}" if left else "must be the end: every step went backward",
                   f"{word} {name}", "Go backward through every step once, the last step first.")
        flows = {word: step.flow(word) for word in ("accumulate", "backward")}
        if word == "accumulate":
            need(program.values_of(step, flows[word]))
            accumulated = step
        else:
            both = flows.values() if accumulated is not step else [flows[word]]
            need([v for flow in both for v in program.values_of(step, flow)])
            left.pop()
    if left:
        refuse("Script(order)", "must go backward through every step", f"an end before {left[-1].name}", "Write it to the end.")
