"""What a run tells to whom it concerns: `Callback`, and the record of numbers as JSON lines."""

import json
import os
from pathlib import Path
from typing import Any

from cllm.errors import DataError
from cllm.files import whole


class Callback:
    """Called as a run goes on; override what is of interest. A callback may call ``trainer.stop()``.

    One that raises hears no more of the run, which ends after the step at hand, with a snapshot, and then raises the same.

    A record is plain data with the key "event" beside "step", the steps taken so far:

    * step: loss, rate, grad_norm, seconds, tokens_per_second (None where other things are fed), examples_per_second (sequences,
      pictures, ...), seconds_left, rss_bytes; where several processes train, slowest_process, the one whose own work takes
      longest, and slowest_over_median, of the seconds of all
    * evaluation: val_loss (nats per token; None where it is not finite), perplexity and bits_per_byte (None where they mean
      nothing), best (so far), since_best (evaluations without a new best)
    * sample: text
    * bad_step: where (the first value or parameter that is not finite), in_a_row
    * snapshot: path
    * restored: path (of the snapshot that a run went back to, when a bad step had moved some parameters)
    """

    def on_start(self, trainer: Any) -> None:
        """Before the first step, with `trainer.step` the steps taken already."""

    def on_event(self, trainer: Any, record: dict) -> None:
        """After a step, an evaluation, a sample, a bad step, or a snapshot."""

    def on_end(self, trainer: Any) -> None:
        """When the run ends, in whatever way."""


class MetricsFile(Callback):
    """Appends every record to a file, one JSON object a line; a resumed run takes back what came after its snapshot."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._descriptor: int | None = None

    def on_start(self, trainer: Any) -> None:
        kept = [line for line in read_lines(self.path) if line["step"] <= trainer.step] if trainer.step else []
        try:
            with whole(self.path) as place:
                place.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise unwritten(str(self.path), error, trainer) from error

    def on_event(self, trainer: Any, record: dict) -> None:
        if record["event"] == "restored":  # what followed that snapshot comes again
            self.on_end(trainer)
            self.on_start(trainer)
        rest = (json.dumps(record) + "\n").encode()
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest):]
        except OSError as error:
            raise unwritten(str(self.path), error, trainer) from error

    def on_end(self, trainer: Any) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def unwritten(where: str, error: Exception, trainer) -> DataError:
    """What a callback raises when what it has to say cannot be written."""
    rest = "" if trainer.out is None else ", and go on from the snapshot with which the run ended (--resume)"
    return DataError(where, "must take what the run tells", getattr(error, "strerror", None) or str(error),
                     f"Make room for it{rest}.")


def read_lines(path: str | Path) -> list[dict]:
    """Records of a metrics file; a line that a killed process or a full disk left unfinished is passed over."""
    found = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                found.append(record)
    return found
