"""A limit of memory that the system enforces on a process: a control group within the present one, where one may be made.

In a group all counts that the process touches, files too, which the system drops when they are in the way. Where none may be
made, RLIMIT_DATA is what remains (`peers/cllm/whole_step.py` sets it in any case): memory of its own, files left out.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
NAME = "cllm-hard-limit-"
# Of the two versions of control groups: the file of the limit, the most that was used, how often it was met.
VERSIONS = (("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.failcnt"), ("memory.max", "memory.peak", None))


class Group:
    """A control group with a limit.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.limit, self.most, self.met = next(names for names in VERSIONS if (folder / names[0]).exists())

    def take(self, pid: int) -> None:
        """A process that has just begun; what it has touched before stays where it was counted."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def facts(self) -> dict:
        """``most_bytes`` that were in use, and how often the limit was ``met`` (then the system dropped files); None where it
        does not tell."""
        found = {}
        for name, file in (("most_bytes", self.most), ("met", self.met)):
            try:
                found[name] = None if file is None else int((self.folder / file).read_text())
            except OSError:
                found[name] = None
        return found


@contextmanager
def group(nbytes: int) -> Iterator[Group | None]:
    """A group within the one that this process is in, and its end; None where none may be made."""
    parent = _own()
    made = None if parent is None else parent / f"{NAME}{os.getpid()}"
    try:
        if made is not None:
            _sweep(parent)
            made.mkdir()
            found = Group(made)
            (made / found.limit).write_text(str(nbytes))
        else:
            found = None
    except (OSError, StopIteration) as error:
        print(f"no control group ({error or 'without memory'}): RLIMIT_DATA alone", file=sys.stderr)
        found = None
    try:
        yield found
    finally:
        if made is not None:
            with suppress(OSError):
                made.rmdir()


def _own() -> Path | None:
    """The folder of the group that this process is in, of the controller of memory."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            for base in (ROOT / "memory",) if "memory" in controllers.split(",") else (ROOT,) if not controllers else ():
                folder = base / place.lstrip("/")
                if any((folder / names[0]).exists() for names in VERSIONS):
                    return folder
    return None


def _sweep(parent: Path) -> None:
    """Groups of scripts that were killed: empty ones can be removed, others cannot."""
    for left in parent.glob(f"{NAME}*"):
        with suppress(OSError):
            left.rmdir()
