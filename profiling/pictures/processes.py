"""Pictures of `processes.py`: a step with its messages, and the model of time."""

from pathlib import Path

from words import title

from pictures.figure import COLOURS, OTHER, OURS, THEIRS, figure, in_order, save

MESSAGES = "#D55E00"


def step_and_scaling(data: dict, path: Path) -> None:
    """A step of the first process, operation after operation, those with messages below the others; and the seconds of work
    and of messages for any number of processes, with what was measured."""
    made, panels = figure((1.9, 2.6), f"{data['processes']} processes, {data['groups']} groups\n{title(data)}")
    if made is None:
        return
    _step(panels[0], list(data["rows"].values())[-1]["operations"])
    _scaling(panels[1], data)
    save(made, path)


def _step(axes, operations: list) -> None:
    now, seen = 0.0, set()
    for kind, _, took in operations:
        sends = kind in ("reduce", "gather")
        colour = MESSAGES if sends else COLOURS.get(kind, OTHER)
        axes.barh(0 if sends else 1, took, left=now, color=colour, label=None if kind in seen else kind)
        seen.add(kind)
        now += took
    axes.set_yticks([0, 1], ["messages", "work"])
    axes.set_xlabel("seconds of a step")
    axes.legend(ncols=max(1, len(in_order(seen))), fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1.25), frameon=False)


def _scaling(axes, data: dict) -> None:
    rows = data["scaling"]
    counts = [row["processes"] for row in rows]
    axes.loglog(counts, [row["compute_seconds"] for row in rows], color=OURS, label="work / R")
    axes.loglog(counts, [row["message_seconds"] for row in rows], color=THEIRS, label="messages")
    axes.loglog(counts, [row["compute_seconds"] + row["message_seconds"] for row in rows], color=OTHER, ls="--", label="both")
    measured = list(data["rows"].values())[-1]
    axes.plot([data["processes"]], [measured["seconds"]["median"]], "o", color=OTHER, label="measured")
    axes.set_xlabel("processes R, the batch the same")
    axes.set_ylabel("seconds of a step")
    axes.legend(fontsize=7, frameon=False)
