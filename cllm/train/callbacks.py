"""What a run tells to whom it concerns: `Callback`, and the record of numbers as JSON lines."""

import json
from pathlib import Path
from typing import IO


class Callback:
    """Called as a run goes on; override what is of interest. A callback may call ``trainer.stop()``.

    A record is plain data with the key "event" beside "step", the steps taken so far:

    * step: loss, rate, grad_norm, seconds, tokens_per_second, seconds_left, rss_bytes
    * evaluation: val_loss (nats per token), perplexity (None for another loss than cross_entropy), best (so far)
    * bad_step: where (the first value or parameter that is not finite), in_a_row
    * snapshot: path
    """

    def on_start(self, trainer) -> None:
        """Before the first step, with `trainer.step` the steps taken already."""

    def on_event(self, trainer, record: dict) -> None:
        """After a step, an evaluation, a bad step, or a snapshot."""

    def on_end(self, trainer) -> None:
        """When the run ends, in whatever way."""


class MetricsFile(Callback):
    """Appends every record to a file, one JSON object a line; a resumed run takes back what came after its snapshot."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: IO[str] | None = None

    def on_start(self, trainer) -> None:
        kept = [line for line in read_lines(self.path) if line["step"] <= trainer.step] if trainer.step else []
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(self.path)
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed in on_end)

    def on_event(self, trainer, record: dict) -> None:
        self._file.write(json.dumps(record) + "\n")

    def on_end(self, trainer) -> None:
        if self._file is not None:
            self._file.close()


def read_lines(path: str | Path) -> list[dict]:
    """Records of a metrics file; a line that a killed process left unfinished is passed over."""
    found = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found
