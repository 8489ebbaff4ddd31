"""What is to be done: one frozen record that everything below takes."""

import hashlib
import json
from dataclasses import dataclass, replace

from cllm.checks import checked_size, checked_word
from cllm.errors import ConfigError
from cllm.program.dims import batch_letters
from cllm.program.optimizer_states import FLOAT32_ALONE, OPTIMIZER_STATES, optimizer_groups
from cllm.program.program import Program
from cllm.threads.counts import checked_threads

ITEMSIZE = {"float32": 4, "float64": 8}

CLIP_BY = ("all", "each")  # gradients, by the norm of all together or each by its own


@dataclass(frozen=True, slots=True)
class Workload:
    """One training step's size and kind.

    Parameters
    ----------
    batch : int
        Sequences in the whole batch.
    time : int or None
        Time steps in each; None where there are none.
    dtype : {"float32", "float64"}
    optimizer : {"adamw", "adam", "sgd", "momentum", "adamw8bit", "adafactor", "none"}, or one for each pattern of names
        Whose state counts in the total bytes: "adamw", or "*emb.weight=adam,sgd" (see `optimizer_groups`).
    threads : int or None
        Threads of the kernels; None takes `cllm.threads.counts.default_threads`.
    clip_by : {"all", "each"} or None
        How a whole step clips gradients, by which the seconds of one that updates in backward are told: the norm of all
        takes a backward of its own. None is not at all.
    groups : int
        A power of two. The batch is cut into so many equal groups, in order; the gradient of each is summed from zero, and
        those of all are added in the order of a binary tree. Bits depend on it.
    processes : int
        That share the groups, the first as many to the first process, and so on. No bit depends on it.

    Raises
    ------
    ConfigError
        When a value is outside what it may be.
    """

    batch: int
    time: int | None
    dtype: str = "float32"
    optimizer: str = "adamw"
    threads: int | None = None
    clip_by: str | None = None
    groups: int = 1
    processes: int = 1

    def __post_init__(self):
        object.__setattr__(self, "batch", checked_size("batch_size", self.batch))
        if self.time is not None:
            object.__setattr__(self, "time", checked_size("seq_len", self.time))
        kinds = [kind for _, kind in optimizer_groups(self.optimizer)] if isinstance(self.optimizer, str) else [None]
        for name, value, allowed in (("dtype", self.dtype, ITEMSIZE), *(("optimizer", k, OPTIMIZER_STATES) for k in kinds)):
            if not isinstance(value, str) or value not in allowed:
                raise ConfigError(name, f"must be one of {', '.join(allowed)}", repr(getattr(self, name)),
                                  "Choose one of these.")
        if self.dtype != "float32" and (narrow := FLOAT32_ALONE.intersection(kinds)):
            raise ConfigError("optimizer", f"must be another than {', '.join(narrow)} where the dtype is {self.dtype}",
                              repr(self.optimizer), "Use float32, or adamw.")
        if self.clip_by is not None:
            checked_word("clip_by", self.clip_by, CLIP_BY)
        object.__setattr__(self, "threads", checked_threads(self.threads))
        for name, of, whole in (("groups", "batch_size", self.batch), ("processes", "groups", self.groups)):
            value = checked_size(name, getattr(self, name))
            if value & (value - 1) or whole % value:
                raise ConfigError(name, f"must be a power of two that divides {of} = {whole}", str(value),
                                  f"Take fewer {name}, or another {'batch_size' if name == 'groups' else 'number of groups'}.")
            object.__setattr__(self, name, value)
        apart = [kind for kind in kinds if any(isinstance(part.per, str) for part in OPTIMIZER_STATES[kind])]
        if self.processes > 1 and apart:
            raise ConfigError("optimizer", "must keep no means of rows and columns where several processes share its "
                              "states: they go over all of an array", repr(self.optimizer),
                              "Use adamw, adamw8bit, adam, momentum or sgd, or one process.")

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self.dtype]

    @property
    def group(self) -> "Workload":
        """What is to be done for one group."""
        return self if self.groups == 1 else replace(self, batch=self.batch // self.groups, groups=1, processes=1)

    @property
    def own_groups(self) -> int:
        """Groups of each process."""
        return self.groups // self.processes

    def letters(self, batch: int | None = None) -> dict[str, int]:
        """The letters B, T and N, for the whole batch or for `batch` sequences of it."""
        return batch_letters(self.batch if batch is None else batch, self.time)

    def rows(self, batch: int | None = None) -> int:
        """N, for the whole batch or for `batch` sequences of it."""
        return self.letters(batch)["N"]

    def check(self, program: Program) -> None:
        """Refuse a program that cannot be run in these sizes.

        Raises
        ------
        ConfigError
            When it has time steps and none were given, or the other way round, or takes fewer.
        """
        if (self.time is None) == program.has_time:
            must = "a number: the model has time steps" if program.has_time else "None: the model has no time steps"
            raise ConfigError("seq_len", f"must be {must}", repr(self.time), "Pass it so.")
        if program.longest is not None and self.time is not None and self.time > program.longest:
            raise ConfigError("seq_len", f"must be at most max_seq_len = {program.longest}", str(self.time),
                              "Make the model with a larger max_seq_len, or pass shorter sequences.")

    def fingerprint(self, program: Program) -> str:
        """What a plan depends on, in 16 hexadecimal digits: program, batch and its groups, time and dtype."""
        what = [program.digest, self.batch, self.time, self.dtype, *([self.groups] if self.groups > 1 else [])]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
