"""What a comparison trains: one frozen record that travels to every fresh process as JSON."""

from dataclasses import dataclass, fields
from math import inf

from cllm.checks import LARGEST_SEED, checked_real, checked_size, keep
from cllm.models.architecture import Architecture, family_name
from cllm.models.families import architecture_of
from cllm.program.workload import Workload


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
        File to train on; None is the embedded text.
    seed : int
        Of the weights and of the batches.
    lr : float
        Rate of AdamW.

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

    def __post_init__(self):
        work = self.workload  # checks all that it is made of, and converts it
        for name, value in (("batch_size", work.batch), ("seq_len", work.time), ("threads", work.threads)):
            object.__setattr__(self, name, value)
        work.check(self.architecture.program)
        keep(self, "Job", "steps", checked_size)
        keep(self, "Job", "seed", checked_size, 0, LARGEST_SEED)
        keep(self, "Job", "lr", checked_real, 0.0, inf)

    @property
    def workload(self) -> Workload:
        """What the planner plans for."""
        return Workload(self.batch_size, self.seq_len, self.dtype, "adamw", self.threads)

    def to_dict(self) -> dict:
        """Every field by name; in place of the architecture its family, and its settings as a dict of its own."""
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "architecture"}
        return {**kept, "family": family_name(type(self.architecture)), "config": self.architecture.to_dict()}

    @classmethod
    def from_dict(cls, described: dict) -> "Job":
        """The job that `to_dict` described."""
        kept = {name: value for name, value in described.items() if name not in ("family", "config")}
        return cls(architecture_of(described), **kept)
