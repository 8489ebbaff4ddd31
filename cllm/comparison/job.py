"""What a comparison trains: one frozen record that travels to every fresh process."""

from dataclasses import dataclass, fields
from math import inf

from cllm.checks import LARGEST_SEED, checked_real, checked_size, keep
from cllm.errors import ConfigError
from cllm.models.architecture import Architecture, record_of
from cllm.models.excerpt import Used
from cllm.program.computing import checked_compute
from cllm.program.program import Program
from cllm.program.workload import Workload

LEAST_VOCABULARY = 256  # that takes every byte of a text


@dataclass(frozen=True, slots=True)
class Job:
    """One training job, the same for every strategy.

    Parameters
    ----------
    architecture : Architecture
    batch_size : int
    seq_len : int or None
        B and T; None for a model without time steps.
    steps : int
        Steady steps; one step before them, not timed, touches all memory and gives the gradient digest.
    dtype : {"float32", "float64"}
    threads : int or None
        None takes the default of this process.
    text : str or None
        File to train on, by models that read text (see `reads_text`); None is the embedded text.
    seed : int
        Of the weights and of the batches.
    lr : float
        Rate of AdamW.
    weights : str or None
        Where the weights are, of a model in other people's files, whose tokenizer reads the text; None draws them.
    groups : int
        As of `Executor`.
    processes : int
        That share the groups, started anew for every run; `threads` are of each.
    launcher : str or None
        The command that starts them, as of `cllm.distributed.launcher`.

    Raises
    ------
    ConfigError
        When a value is outside what it may be.
    """

    architecture: Architecture
    batch_size: int = 8
    seq_len: int | None = 256
    steps: int = 3
    dtype: str = "float32"
    threads: int | None = None
    text: str | None = None
    seed: int = 0
    lr: float = 3e-4
    weights: str | None = None
    compute: str = "float32"
    groups: int = 1
    processes: int = 1
    launcher: str | None = None

    def __post_init__(self):
        work, program = self.workload, self.architecture.program  # checks all that it is made of, and converts it
        for name, value in (("batch_size", work.batch), ("seq_len", work.time), ("threads", work.threads)):
            object.__setattr__(self, name, value)
        work.check(program)
        checked_compute("Job(compute=...)", self.compute, self.dtype)
        record_of(self.architecture)  # which a report must be able to hold
        keep(self, "Job", "steps", checked_size)
        keep(self, "Job", "seed", checked_size, 0, LARGEST_SEED)
        keep(self, "Job", "lr", checked_real, 0.0, inf)
        if self.text is not None and not reads_text(program):
            raise ConfigError("text", f"is for models that are fed tokens, {LEAST_VOCABULARY} of them or more, and targets",
                              f"one that is fed {', '.join(program.feeds)}", "Leave it out: example_batch is taken.")

    @property
    def workload(self) -> Workload:
        """What the planner plans for."""
        return Workload(self.batch_size, self.seq_len, self.dtype, "adamw", self.threads, groups=self.groups,
                        processes=self.processes)

    @property
    def used(self) -> Used:
        """The model as it computes: what a calibration measures."""
        return Used.of(self.architecture, compute=self.compute)

    def to_dict(self) -> dict:
        """Every field by name; in place of the architecture its ``family`` and, as a dict of its own, ``config``."""
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "architecture"}
        return {**record_of(self.architecture), **kept}


def reads_text(program: Program) -> bool:
    """Whether windows of a text in bytes are what a model is fed: tokens, targets, and a vocabulary for all bytes."""
    fed = {name: feed.shape for name, feed in program.feeds.items()}
    return fed == {"tokens": "B T", "targets": "B T"} and all(
        feed.high is not None and feed.high >= LEAST_VOCABULARY for feed in program.feeds.values())
