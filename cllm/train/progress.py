"""Progress for people: a live bar on a terminal, plain lines elsewhere."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cllm.train.callbacks import Callback


def progress(quiet: bool = False) -> Callback:
    """What suits standard output: a bar on a terminal, lines otherwise; `quiet` leaves out lines of single steps."""
    return Bar() if Console().is_terminal and not quiet else Lines(quiet)


class Lines(Callback):
    """One line for every `log_every` steps, evaluation, bad step and snapshot; `quiet` leaves out single steps."""

    def __init__(self, quiet: bool = False, file=None):
        self.quiet, self._file = quiet, file

    def on_start(self, trainer) -> None:
        self._say(opening(trainer))

    def on_event(self, trainer, record: dict) -> None:
        due = record["step"] % trainer.settings.log_every == 0 or record["step"] in (1, trainer.settings.steps)
        if record["event"] != "step" or (due and not self.quiet):
            self._say(in_words(trainer, record))

    def _say(self, line: str) -> None:
        print(line, file=self._file or sys.stdout, flush=True)


class Bar(Callback):
    """A bar with loss, rate, gradient norm, speed, memory and time left; other events are lines above it."""

    def __init__(self):
        self._bar = Progress(BarColumn(bar_width=10),
                             TextColumn("{task.completed}/{task.total} {task.fields[words]}"))

    def on_start(self, trainer) -> None:
        self._bar.start()
        self._bar.console.print(opening(trainer), highlight=False, markup=False)
        self._task = self._bar.add_task("train", total=trainer.settings.steps, completed=trainer.step, words="")

    def on_event(self, trainer, record: dict) -> None:
        if record["event"] == "step":
            self._bar.update(self._task, completed=record["step"], words=in_words(trainer, record, bare=True))
        else:
            self._bar.console.print(in_words(trainer, record), highlight=False, markup=False)

    def on_end(self, trainer) -> None:
        self._bar.stop()


def opening(trainer) -> str:
    """What the run is, in one line."""
    s, model = trainer.settings, trainer.model
    parameters = sum(p.size for p in model.parameters.values())
    begin = f"resumed after step {trainer.step}" if trainer.step else "from the start"
    begin = "".join(f"passed over: {reason}\n" for _, reason in trainer.keeper.damaged) + begin
    return (f"{begin}: {parameters:,} parameters, {len(trainer.train_tokens):,} tokens to train on, "
            f"{len(trainer.val_tokens):,} to validate, {s.steps} steps of "
            f"{s.accumulate * s.batch_size} x {s.seq_len}, {s.optimizer}")


def in_words(trainer, record: dict, bare: bool = False) -> str:
    """A record as a line; `bare` is a step's record in less than 80 columns, beside the bar."""
    head = f"step {record['step']:>6}  "
    if bare:
        limit = trainer.executors.limit
        of = "" if limit is None else f"/{limit / 1e6:,.0f}"
        return (f"loss {record['loss']:.4f} rate {record['rate']:.1e} norm {record['grad_norm']:.2f} "
                f"{record['tokens_per_second']:,.0f} tok/s {trainer.executors.total_bytes / 1e6:,.0f}{of} MB "
                f"{duration(record['seconds_left'])}")
    if record["event"] == "step":
        return head + "  ".join((
            f"loss {record['loss']:.4f}", f"rate {record['rate']:.2e}", f"norm {record['grad_norm']:.2f}",
            f"{record['tokens_per_second']:,.0f} tok/s", memory_in_words(trainer, record["rss_bytes"]),
            f"left {duration(record['seconds_left'])}"))
    if record["event"] == "evaluation":
        best = "  best so far" if record["best"] else ""
        unit = "" if record["perplexity"] is None else f" nats per token, perplexity {record['perplexity']:.3f}"
        return head + f"validation {record['val_loss']:.4f}{unit}{best}"
    if record["event"] == "bad_step":
        return head + f"not applied, {record['in_a_row']} in a row: {record['where']}"
    return head + f"{record['event']} {record.get('path', '')}"


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
