"""What is to be done: one frozen record that everything below takes."""

import hashlib
import json
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cllm.config import ModelConfig, checked_size
from cllm.errors import ConfigError
from cllm.program.dims import batch_letters

ITEMSIZE = {"float32": 4, "float64": 8}

# Arrays of the parameter's shape and dtype that an optimizer keeps.
OPTIMIZER_STATES = {"none": 0, "sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}


def optimizer_groups(optimizer: str) -> tuple[tuple[str, str], ...]:
    """Pattern of parameter names and kind of each part of a name such as ``adamw`` or ``*emb.weight=adam,sgd``."""
    parts = [part.strip().rpartition("=") for part in optimizer.split(",")]
    return tuple((pattern if equals else "*", kind) for pattern, equals, kind in parts)


def state_arrays(optimizer: str, parameter: str) -> int:
    """Arrays that the optimizer keeps for a parameter: as the first part whose pattern matches its name has it."""
    return next((OPTIMIZER_STATES[kind] for pattern, kind in optimizer_groups(optimizer)
                 if fnmatchcase(parameter, pattern)), 0)


MOST_THREADS = 1024


def all_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def checked_threads(num_threads: int | None) -> int:
    """The number of threads, all cores for None; `ConfigError` outside 1 .. `MOST_THREADS`."""
    return all_cores() if num_threads is None else checked_size("num_threads", num_threads, most=MOST_THREADS)


@dataclass(frozen=True, slots=True)
class Workload:
    """One training step's size and kind.

    Parameters
    ----------
    config : ModelConfig
    batch, time : int
        Sequences in the whole batch, and tokens in each; `time` at most ``config.max_seq_len``.
    dtype : {"float32", "float64"}
    optimizer : {"adamw", "adam", "sgd", "momentum", "none"}, or one for each pattern of names
        Whose state counts in the total bytes: "adamw", or "*emb.weight=adam,sgd" (see `optimizer_groups`).
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
        object.__setattr__(self, "batch", checked_size("batch_size", self.batch))
        object.__setattr__(self, "time", checked_size("seq_len", self.time))
        if self.time > self.config.max_seq_len:
            raise ConfigError("seq_len", f"must be at most max_seq_len = {self.config.max_seq_len}", str(self.time),
                              "Make the model with a larger max_seq_len, or pass shorter sequences.")
        kinds = [kind for _, kind in optimizer_groups(self.optimizer)] if isinstance(self.optimizer, str) else [None]
        for name, value, allowed in (("dtype", self.dtype, ITEMSIZE), *(("optimizer", k, OPTIMIZER_STATES) for k in kinds)):
            if not isinstance(value, str) or value not in allowed:
                raise ConfigError(name, f"must be one of {', '.join(allowed)}", repr(getattr(self, name)),
                                  "Choose one of these.")
        object.__setattr__(self, "threads", checked_threads(self.threads))

    @property
    def fingerprint(self) -> str:
        """What a plan depends on, in 16 hexadecimal digits: model, batch, time and dtype."""
        what = [self.config.to_dict(), self.batch, self.time, self.dtype]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self.dtype]

    def letters(self, batch: int | None = None) -> dict[str, int]:
        """Every shape letter, for the whole batch or for `batch` sequences of it."""
        return {**self.config.letters, **batch_letters(self.batch if batch is None else batch, self.time)}
