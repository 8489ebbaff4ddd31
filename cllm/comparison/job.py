"""What a comparison trains: one frozen record that travels to every fresh process as JSON."""

from dataclasses import asdict, dataclass

from cllm.config import ModelConfig, checked_size
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
        _ = self.workload  # checks all that it is made of
        checked_size("steps", self.steps)

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
