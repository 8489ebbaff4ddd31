"""The snapshots of one run: which to go on from, which to keep."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cllm import files
from cllm.errors import SnapshotError
from cllm.snapshot import Base, prune, read_state, set_aside, snapshots, step_of, sweep, write_snapshot


@dataclass(slots=True)
class Keeper:
    """Writes snapshots into a directory and keeps the last `keep`, the best, and the last that is known to be good.

    A snapshot is known to be good once its weights have given a finite loss: finite weights alone do not promise that.

    Attributes
    ----------
    latest : Path or None
        The latest whole snapshot.
    best : (step, validation loss) or None
        Of the evaluations after which a snapshot was written.
    since_best : int
        Evaluations without a new best.
    proven : int
        Step whose weights were the last to give a finite loss; -1 for none.
    damaged : list of (path, reason)
        Snapshots later than the latest whole one.
    newest : int
        Step of the latest that is there, whole or not; -1 for none.
    base : Base or None
        What snapshots need not hold.
    """

    out: Path | None
    latest: Path | None = None
    best: tuple[int, float] | None = None
    since_best: int = 0
    proven: int = -1
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    newest: int = -1
    base: Base | None = None

    def find(self) -> dict | None:
        """State of the latest whole snapshot; None where there is no snapshot at all.

        Raises
        ------
        SnapshotError
            When there are some, all damaged.
        """
        found = snapshots(self.out)
        self.newest = step_of(found[-1]) if found else -1
        for path in reversed(found):
            try:
                state = read_state(path)
            except SnapshotError as error:
                self.damaged.append((path, str(error)))
                continue
            self.latest = path
            return state
        if self.damaged:
            raise SnapshotError(f"run in {self.out}", "must have a whole snapshot", self.damaged[0][1],
                                "Start afresh in another directory.")
        return None

    @property
    def good(self) -> Path | None:
        """The last snapshot that is known to be good."""
        return next((path for path in reversed(snapshots(self.out)) if step_of(path) <= self.proven), None)

    def begin(self) -> None:
        """Make the directory ready: what killed processes left is removed, damaged snapshots are set aside.

        Raises
        ------
        SnapshotError
            When there are later snapshots than this run knows of, or the directory cannot be written.
        """
        try:
            files.sweep(self.out)
            sweep(self.out)
            later = [path for path in snapshots(self.out) if step_of(path) > self.newest]
            if later:
                raise SnapshotError(f"run in {self.out}", "must be the only one that writes there",
                                    f"{later[-1].name}, which another run has left since this one was made",
                                    "Make the Trainer again with resume=True, or choose another directory.")
            for path, _ in self.damaged:
                if path.exists():
                    set_aside(path)
        except OSError as error:
            raise SnapshotError(f"run in {self.out}", "must be in a directory that can be written",
                                error.strerror or str(error), "Choose another directory, or make room.") from error

    def is_better(self, step: int, val_loss: float) -> bool:
        """Whether this validation loss is the least so far; it is remembered."""
        if self.best is not None and not val_loss < self.best[1]:
            self.since_best += 1
            return False
        self.best, self.since_best = (step, val_loss), 0
        return True

    def write(self, step: int, model, optimizer, state: dict, files: dict[str, bytes], keep: int) -> Path:
        """Write a snapshot; then delete those that need not be kept."""
        mine = {"best": self.best, "since_best": self.since_best, "proven": self.proven}
        self.latest = write_snapshot(self.out, step, model, optimizer, {**state, **mine}, files, self.base)
        self.newest = max(self.newest, step)
        prune(self.out, keep, {step_of(path) for path in (self.good,) if path is not None}
              | ({self.best[0]} if self.best else set()))
        return self.latest

    def restore(self, state: dict) -> None:
        """What a snapshot knew; snapshots of earlier versions know less."""
        self.best = state["best"] and tuple(state["best"])
        self.since_best, self.proven = state.get("since_best", 0), state.get("proven", -1)

    def free_bytes(self) -> int:
        """Room on the disk of the directory, or of the nearest one above it that is there."""
        place = next(path for path in (self.out, *self.out.absolute().parents) if path.is_dir())
        return shutil.disk_usage(place).free
