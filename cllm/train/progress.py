"""Progress for people: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cllm.train.callbacks import Callback, unwritten

if TYPE_CHECKING:  # rich is imported where it is used: without it `import cllm` is quicker
    from rich.console import Console

HINT_AFTER = 3  # evaluations without a new best: one may be chance


def progress(quiet: bool = False) -> Callback:
    """What suits standard output: a bar on a terminal, lines otherwise; `quiet` leaves out lines of single steps."""
    from rich.console import Console

    return Bar() if Console().is_terminal and not quiet else Lines(quiet)


class Lines(Callback):
    """One line for every `log_every` steps, evaluation, sample, bad step and snapshot; `quiet` leaves out single steps."""

    def __init__(self, quiet: bool = False, file=None):
        self.quiet, self._file = quiet, file

    def on_start(self, trainer) -> None:
        self._say(trainer, opening(trainer))

    def on_event(self, trainer, record: dict) -> None:
        due = record["step"] % trainer.settings.log_every == 0 or record["step"] in (1, trainer.settings.steps)
        if record["event"] != "step" or (due and not self.quiet):
            self._say(trainer, in_words(trainer, record))

    def _say(self, trainer, line: str) -> None:
        file = self._file or sys.stdout
        try:
            print(printable(line, file), file=file, flush=True)
        except (OSError, ValueError) as error:  # closed from the other side, or from this one
            raise unwritten("standard output", error, trainer) from error


class Bar(Callback):
    """A bar with time left, loss, speed, memory, rate and gradient norm, as far as the terminal is wide; other events are
    lines above it."""

    BAR = 10  # columns

    def __init__(self, console: Console | None = None):
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(BarColumn(bar_width=self.BAR),
                             TextColumn("{task.completed}/{task.total} {task.fields[words]}"), console=console)

    def on_start(self, trainer) -> None:
        self._bar.start()
        self._say(trainer, opening(trainer))
        self._task = self._bar.add_task("train", total=trainer.settings.steps, completed=trainer.step, words="")

    def on_event(self, trainer, record: dict) -> None:
        if record["event"] == "step":
            room = self._bar.console.width - self.BAR - len(f"{record['step']}/{trainer.settings.steps}") - 3
            self._bar.update(self._task, completed=record["step"], words=step_in_short(trainer, record, room))
        else:
            self._say(trainer, in_words(trainer, record))

    def on_end(self, trainer) -> None:
        self._bar.stop()

    def _say(self, trainer, line: str) -> None:
        try:
            self._bar.console.print(printable(line, self._bar.console.file), highlight=False, markup=False)
        except (OSError, ValueError) as error:
            raise unwritten("standard output", error, trainer) from error


def printable(text: str, file) -> str:
    """The text with what the file's encoding does not know replaced: progress may never end a run."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def opening(trainer) -> str:
    """What the run is, in one line, after what a user should know first."""
    s, model = trainer.settings, trainer.model
    count = sum(p.size for p in model.parameters.values())
    trained = sum(model.parameters[name].size for name in model.program.trained)
    parameters = f"{count:,} parameters" + (f", {trained:,} of them trained" if trained < count else "")
    lines = [f"passed over: {reason}" for _, reason in trainer.keeper.damaged] + trainer.notes
    begin = f"resumed after step {trainer.step}" if trainer.step else "from the start"
    lines.append(f"{begin}: {parameters}, {trainer.source.in_words()}, {s.steps} steps, {s.optimizer}")
    if trainer.out is not None:
        needed, free = trainer.disk_bytes, trainer.keeper.free_bytes()
        short = "" if needed < free else ": TOO LITTLE; lower --keep, or take another directory"
        lines.append(f"disk: snapshots of {trainer.snapshot_bytes / 1e6:,.1f} MB, up to {needed / 1e6:,.1f} MB in all "
                     f"({free / 1e6:,.0f} free){short}")
    return "\n".join(lines)


def step_in_short(trainer, record: dict, room: int) -> str:
    """A step's record beside the bar: what matters most comes first, and what does not fit is left out whole."""
    limit = trainer.executors.limit
    of = "" if limit is None else f"/{limit / 1e6:,.0f}"
    words = ""
    for part in (f"{duration(record['seconds_left'])} left", f"loss {record['loss']:.4f}",
                 speed_in_words(record), *slowest_in_words(record, ""), f"{trainer.executors.total_bytes / 1e6:,.0f}{of} MB",
                 f"rate {record['rate']:.1e}", f"norm {record['grad_norm']:.2f}"):
        longer = f"{words} {part}".lstrip()
        if len(longer) > room:
            break
        words = longer
    return words


def in_words(trainer, record: dict) -> str:
    """A record as a line."""
    head = f"step {record['step']:>6}  "
    if record["event"] == "step":
        return head + "  ".join((
            f"loss {record['loss']:.4f}", f"rate {record['rate']:.2e}", f"norm {record['grad_norm']:.2f}",
            speed_in_words(record), *slowest_in_words(record), memory_in_words(trainer, record["rss_bytes"]),
            f"left {duration(record['seconds_left'])}"))
    if record["event"] == "evaluation":
        return head + evaluation_in_words(trainer, record)
    if record["event"] == "sample":
        return head + f"sample: {record['text']}"
    if record["event"] == "bad_step":
        return head + f"not applied, {record['in_a_row']} in a row: {record['where']}"
    return head + f"{record['event']} {record.get('path', '')}"


def evaluation_in_words(trainer, record: dict) -> str:
    """Validation loss and what it means, and a hint once it has not been bettered for a while."""
    if record["val_loss"] is None:
        return "validation is not finite: the model has diverged; lower the rate, or clip harder"
    words = f"validation {record['val_loss']:.4f}"
    if trainer.model.program.head.layer.in_nats:
        shown = record["perplexity"]
        words += f" {trainer.source.unit}, perplexity {'beyond 1e300' if shown is None else number(shown)}"
        if record["bits_per_byte"] is not None:
            words += f", {record['bits_per_byte']:.4f} bits per byte"
    if record["best"]:
        return words + "  best so far"
    if record["since_best"] >= HINT_AFTER:
        best, loss = trainer.keeper.best
        words += (f"  no better for {record['since_best']} evaluations, best {loss:.4f} at step {best}: it may be learning "
                  f"{trainer.source.by_heart}")
    return words


def speed_in_words(record: dict) -> str:
    """Tokens a second, or sequences of a model that is fed something else."""
    tokens = record["tokens_per_second"]
    return f"{record['examples_per_second']:,.0f} /s" if tokens is None else f"{tokens:,.0f} tok/s"


def slowest_in_words(record: dict, of: str = " of the median") -> list[str]:
    """Of several processes, the one that the others wait for."""
    return [] if "slowest_process" not in record else [
        f"slowest process {record['slowest_process']} ({record['slowest_over_median']:.2f}{of})"]


def number(value: float) -> str:
    """Three decimals, or powers of ten where it is large."""
    return f"{value:.3f}" if value < 1e6 else f"{value:.3e}"


def memory_in_words(trainer, rss_bytes: int) -> str:
    """Planned bytes, of the budget where there is one, and what the process holds."""
    limit = trainer.executors.limit
    of = "" if limit is None else f" of {limit / 1e6:,.0f}"
    return f"memory {trainer.executors.total_bytes / 1e6:,.0f}{of} MB (process {rss_bytes / 1e6:,.0f})"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
