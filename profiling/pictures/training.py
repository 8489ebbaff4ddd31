"""Pictures of training runs: validation loss, against time, against steps, from seed to seed."""

from pathlib import Path

from words import title

from pictures.figure import OURS, SERIES, THEIRS, save
from pictures.figure import figure as new_figure

EXACT = "#000000"
SUBJECTS = {"compression": "activations kept in fewer bits",
            "mixed_precision_loss": "bfloat16 working copy, float32 masters and sums",
            "bfloat16_loss": "products and what enters them in bfloat16",
            "optimizers": "optimizers of less state"}


def beside_peer(data: dict, path: Path) -> None:
    """Validation loss against the seconds trained, and against the steps, of `training.py`."""
    figure, axes = new_figure([3.2, 3.2], f"{title(data)}\nbytes of the embedded text")
    if figure is None:
        return
    for axis, key, words in zip(axes, ("seconds", "step"), ("seconds of training", "steps"), strict=True):
        for row, colour, style in zip(data["rows"], (OURS, THEIRS), ("-", "--"), strict=False):
            points = [(one[key], one["val_loss"]) for one in row["evaluations"]]
            axis.plot(*zip(*points, strict=True), style, color=colour, label=row["name"], marker=".", linewidth=1.4)
        axis.set_xlabel(words)
        axis.set_ylabel("validation loss, nats per byte")
        axis.legend(frameon=False)
    save(figure, path)


def tuned(data: dict, path: Path) -> None:
    """Loss of every step of `examples/finetune_smollm2.py`, and validation loss."""
    figure, axes = new_figure([3.2], title(data))
    if figure is None:
        return
    axis = axes[0]
    axis.plot(range(1, len(data["losses"]) + 1), data["losses"], ".", color=THEIRS, markersize=4, label="training, each step")
    axis.plot([one["step"] for one in data["evaluations"]], [one["val_loss"] for one in data["evaluations"]], "o-", color=OURS,
              label="validation")
    axis.set_xlabel("steps")
    axis.set_ylabel("loss, nats a token")
    axis.legend(frameon=False)
    save(figure, path)


def curves(data: dict, path: Path) -> None:
    """Validation loss of every run of `jobs/curves.py`, and its distance from the exact run of its seed inside the spread of
    seeds."""
    rows = data["rows"]
    seeds = len(rows[0]["runs"])
    figure, axes = new_figure([3.4, 3.4], f"{SUBJECTS[data['script']]}: {data['steps']} steps, {seeds} seeds\n{title(data)}")
    if figure is None:
        return
    above, below = axes
    exact = [run["evaluations"] for run in rows[0]["runs"]]
    steps = [step for step, _ in exact[0]]
    spreads = [max(points) - min(points) for points in zip(*([loss for _, loss in one] for one in exact), strict=True)]
    below.fill_between(steps, [-s for s in spreads], spreads, color="#dddddd", label="spread of seeds, exact runs")
    for row, colour in zip(rows, (EXACT, *SERIES), strict=False):
        for seed, (run, reference) in enumerate(zip(row["runs"], exact, strict=True)):
            label = row["name"] if seed == 0 else None
            loss = [one for _, one in run["evaluations"]]
            above.plot(steps, loss, color=colour, linewidth=1, alpha=0.8, label=label)
            if row is not rows[0]:
                below.plot(steps, [one - other for one, (_, other) in zip(loss, reference, strict=True)], color=colour,
                           linewidth=1, marker=".", alpha=0.8)
    above.set_ylabel("validation loss, nats a byte")
    below.set_ylabel("less the exact run of the same seed")
    for axis in (above, below):
        axis.set_xlabel("step")
        axis.legend(fontsize=9, frameon=False)
    save(figure, path)


def variants(data: dict, path: Path) -> None:
    """Loss of every seed of `crystalline.py`, one line a variant."""
    rows = data["rows"]
    first = rows[0]["config"]
    about = title({**data, "config": first, "seq_len": first["max_seq_len"]})
    figure, axes = new_figure([0.35 * len(rows) + 0.9], f"variants of {about}\n{data['steps']} steps")
    if figure is None:
        return
    axis = axes[0]
    for place, row in enumerate(reversed(rows)):
        axis.plot(row["losses"], [place] * len(row["losses"]), "o", color=OURS, alpha=0.6)
        axis.plot(row["mean"], place, "|", color=EXACT, markersize=14)
    axis.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    axis.set_xlabel("validation loss, nats a byte: each seed, and the mean")
    axis.grid(False, axis="y")
    save(figure, path)
