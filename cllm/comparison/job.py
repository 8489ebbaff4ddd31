"""What a comparison trains: one frozen record that travels to every fresh process as JSON."""

from dataclasses import asdict, dataclass
from math import inf

from cllm.checks import checked_real, checked_size, keep
from cllm.config import LARGEST_SEED, ModelConfig
from cllm.program.workload import Workload


@dataclass(frozen=True, slots=True)
class Job:
    """One training job, the same for every strategy.

    Parameters
    ----------
    config : ModelConfig
    batch_size, seq_len : int
        B and T.
    steps : int
        Steady steps; one step before them, not timed, touches all memory and gives the gradient digest.
    dtype : {"float32", "float64"}
    threads : int or None
        None takes all cores.
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

    config: ModelConfig
    batch_size: int = 8
    seq_len: int = 256
    steps: int = 3
    dtype: str = "float32"
    threads: int | None = None
    text: str | None = None
    seed: int = 0
    lr: float = 3e-4

    def __post_init__(self):
        work = self.workload  # checks all that it is made of, and converts it
        for name, value in (("batch_size", work.batch), ("seq_len", work.time)):
            object.__setattr__(self, name, value)
        keep(self, "Job", "steps", checked_size)
        keep(self, "Job", "seed", checked_size, 0, LARGEST_SEED)
        keep(self, "Job", "lr", checked_real, 0.0, inf)

    @property
    def workload(self) -> Workload:
        """What the planner plans for."""
        return Workload(self.config, self.batch_size, self.seq_len, self.dtype, "adamw", self.threads)

    def to_dict(self) -> dict:
        """Every field by name, the configuration as a dict of its own."""
        return {**asdict(self), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict) -> "Job":
        """The job that `to_dict` described."""
        return cls(**{**fields, "config": ModelConfig(**fields["config"])})
