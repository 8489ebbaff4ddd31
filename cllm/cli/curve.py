"""``cllm train --plot``: the loss so far as a picture, drawn anew at every evaluation."""

from pathlib import Path

from cllm.comparison.files import place_for
from cllm.train import Callback, read_lines

TRAIN, VALIDATION = "#999999", "#0072B2"  # colour-blind safe (Okabe and Ito)
MEAN_OF = 20  # steps whose mean is the line through the dots of single steps


class LossCurve(Callback):
    """Training loss by step, its running mean, and validation loss; a resumed run draws the steps before it as well."""

    def __init__(self, path: Path):
        self.path = path

    def on_start(self, trainer) -> None:
        lines = [] if trainer.out is None else read_lines(trainer.out / "metrics.jsonl")
        self._steps = [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]
        self._evaluations = [(line["step"], line["val_loss"]) for line in lines if line["event"] == "evaluation"]

    def on_event(self, trainer, record: dict) -> None:
        if record["event"] == "step":
            self._steps.append((record["step"], record["loss"]))
        if record["event"] == "evaluation":
            self._evaluations.append((record["step"], record["val_loss"]))
            self._draw(trainer)

    def on_end(self, trainer) -> None:
        self._draw(trainer)

    def _draw(self, trainer) -> None:
        from matplotlib.figure import Figure  # no pyplot: no display, no state

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        if self._steps:
            numbers, losses = zip(*self._steps, strict=True)
            axes.plot(numbers, losses, ".", markersize=2, color=TRAIN, label="training, each step")
            axes.plot(numbers, running_mean(losses), color=TRAIN, linewidth=1.2, label=f"training, mean of {MEAN_OF}")
        finite = [(step, loss) for step, loss in self._evaluations if loss is not None]
        if finite:
            axes.plot(*zip(*finite, strict=True), "o-", markersize=4, color=VALIDATION, label="validation")
            axes.legend(frameon=False)
        s = trainer.settings
        axes.set_xlim(0, s.steps)
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token" if trainer.model.program.head.layer.in_nats else "loss")
        axes.set_title(f"{s.accumulate * s.batch_size} x {s.seq_len}, {s.optimizer}, rate {s.lr:g}, seed {s.seed}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.7)
        with place_for(self.path) as place:
            figure.savefig(place, dpi=120)


def running_mean(values) -> list[float]:
    """The mean of each value and those before it, `MEAN_OF` in all."""
    found, total = [], 0.0
    for number, value in enumerate(values):
        total += value - (values[number - MEAN_OF] if number >= MEAN_OF else 0.0)
        found.append(total / min(number + 1, MEAN_OF))
    return found
