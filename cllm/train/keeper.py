"""The snapshots of one run: which to go on from, which to keep."""

from dataclasses import dataclass, field
from pathlib import Path

from cllm.errors import SnapshotError
from cllm.snapshot import prune, read_state, set_aside, snapshots, write_snapshot


@dataclass(slots=True)
class Keeper:
    """Writes snapshots into a directory and keeps the last `keep` and the best.

    Attributes
    ----------
    latest : Path or None
        The latest whole snapshot.
    best : (step, validation loss) or None
    damaged : list of (path, reason)
        Snapshots later than the latest whole one.
    """

    out: Path
    latest: Path | None = None
    best: tuple[int, float] | None = None
    damaged: list[tuple[Path, str]] = field(default_factory=list)

    def find(self) -> dict | None:
        """State of the latest whole snapshot; None where there is no snapshot at all.

        Raises
        ------
        SnapshotError
            When there are some, all damaged.
        """
        for path in reversed(snapshots(self.out)):
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

    def set_damaged_aside(self) -> None:
        """Rename damaged snapshots, so that new ones can take their place."""
        for path, _ in self.damaged:
            set_aside(path)
        self.damaged.clear()

    def is_better(self, step: int, val_loss: float) -> bool:
        """Whether this validation loss is the least so far; it is remembered."""
        if self.best is not None and not val_loss < self.best[1]:
            return False
        self.best = step, val_loss
        return True

    def write(self, step: int, model, optimizer, state: dict, files: dict[str, bytes], keep: int) -> Path:
        """Write a snapshot; then delete those that need not be kept."""
        self.latest = write_snapshot(self.out, step, model, optimizer, {**state, "best": self.best}, files)
        prune(self.out, keep, self.best[0] if self.best else None)
        return self.latest
