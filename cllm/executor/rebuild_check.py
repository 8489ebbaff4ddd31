"""The determinism check: rebuilt values are held against the originals, bit by bit."""

from dataclasses import dataclass, field
from hashlib import blake2b

from cllm.errors import ConfigError, RebuildError
from cllm.executor.binding import Binder, Call
from cllm.program.kinds import Kind
from cllm.schedule.operations import Op, Schedule

EVERY = {"off": 0, "sampled": 8, "bits": 1}


@dataclass(slots=True)
class RebuildCheck:
    """Remembers a digest of each value that forward makes, and compares each rebuild with it.

    Parameters
    ----------
    every : int
        Check one in so many values; 0 checks none.
    """

    every: int
    step: int = 0
    start: int = 0
    digests: dict[str, bytes] = field(default_factory=dict)

    @staticmethod
    def of(mode: str) -> "RebuildCheck":
        """The check of that name."""
        if not isinstance(mode, str) or mode not in EVERY:
            raise ConfigError("Executor(determinism_check=...)", f"must be one of {', '.join(EVERY)}", repr(mode),
                              "Choose one of these.")
        return RebuildCheck(EVERY[mode])

    def begin(self, step: int, start: int) -> None:
        """A micro-batch of a training step begins, at that sequence of the batch."""
        self.step, self.start = step, start
        self.digests.clear()

    def wrap(self, calls: list[Call], schedule: Schedule, binder: Binder) -> list[Call]:
        """The same calls, those of forward and rebuild followed by the check."""
        if not self.every:
            return calls
        rebuilt = sorted({schedule.buffers[b].label for op in schedule.ops if op.kind == Kind.REBUILD for _, b in op.writes
                          if schedule.buffers[b].kind != "scratch"})
        chosen = set(rebuilt[::self.every])
        return [self._checked(call, op, schedule, binder, chosen) if op.kind in (Kind.FORWARD, Kind.REBUILD) else call
                for call, op in zip(calls, schedule.ops, strict=True)]

    def _checked(self, call, op: Op, schedule: Schedule, binder: Binder, chosen: set[str]) -> Call:
        watched = [(buffer.label, binder.array(buffer)) for _, b in op.writes
                   if (buffer := schedule.buffers[b]).label in chosen and buffer.kind != "scratch"]

        def run() -> None:
            call()
            for label, array in watched:
                digest = blake2b(array, digest_size=16).digest()
                if self.digests.setdefault(label, digest) != digest:
                    raise RebuildError(f"rebuild of {label} in step {self.step}, sequences from {self.start}",
                                       "must give the original's bits", "other bits",
                                       "Look for a kernel or layer whose result is not a function of its inputs.")

        return run if watched else call
