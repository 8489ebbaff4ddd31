"""What is to be done: one frozen record that everything below takes."""

import os
from dataclasses import dataclass

from cllm.config import ModelConfig, checked_size
from cllm.dims import batch_letters
from cllm.errors import ConfigError

ITEMSIZE = {"float32": 4, "float64": 8}

# Arrays of the parameter's shape and dtype that an optimizer keeps.
OPTIMIZER_STATES = {"none": 0, "sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}


def all_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Workload:
    """One training step's size and kind.

    Parameters
    ----------
    config : ModelConfig
    batch, time : int
        Sequences in the whole batch, and tokens in each; `time` at most ``config.max_seq_len``.
    dtype : {"float32", "float64"}
    optimizer : {"adamw", "adam", "sgd", "momentum", "none"}
        Whose state counts in the total bytes.
    threads : int or None
        Threads of the kernels; None takes all cores.

    Raises
    ------
    ConfigError
        When a value is outside what it may be.
    """

    config: ModelConfig
    batch: int
    time: int
    dtype: str = "float32"
    optimizer: str = "adamw"
    threads: int | None = None

    def __post_init__(self):
        if not isinstance(self.config, ModelConfig):
            raise ConfigError("config", "must be a ModelConfig", type(self.config).__name__,
                              "Make one with cllm.ModelConfig(...) or ModelConfig.preset(name).")
        checked_size("batch_size", self.batch)
        checked_size("seq_len", self.time)
        if self.time > self.config.max_seq_len:
            raise ConfigError("seq_len", f"must be at most max_seq_len = {self.config.max_seq_len}", str(self.time),
                              "Make the model with a larger max_seq_len, or pass shorter sequences.")
        for name, value, allowed in (("dtype", self.dtype, ITEMSIZE), ("optimizer", self.optimizer, OPTIMIZER_STATES)):
            if not isinstance(value, str) or value not in allowed:
                raise ConfigError(name, f"must be one of {', '.join(allowed)}", repr(value), "Choose one of these.")
        threads = all_cores() if self.threads is None else checked_size("num_threads", self.threads)
        object.__setattr__(self, "threads", threads)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self.dtype]

    def letters(self, batch: int | None = None) -> dict[str, int]:
        """Every shape letter, for the whole batch or for `batch` sequences of it."""
        return {**self.config.letters, **batch_letters(self.batch if batch is None else batch, self.time)}
