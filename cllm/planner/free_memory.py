"""What memory is free, by the machine, by the process's cgroups and by its resource limits."""

from collections.abc import Iterator
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None

MARGIN_SHARE = 0.05  # of what is free, left to the rest of the process and to page tables
MARGIN_BYTES = 64 << 20

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def free_bytes() -> int:
    """Bytes that a process may still take, less a margin: the least of free memory, the room in each of its cgroups, and
    the room below RLIMIT_AS and RLIMIT_DATA."""
    free = min([psutil.virtual_memory().available, *_cgroup_room(), *_rlimit_room()])
    return max(1, int(free * (1 - MARGIN_SHARE)) - MARGIN_BYTES)


def _cgroup_room() -> list[int]:
    rooms = []
    for folder, limit, usage, reclaimed in _cgroups():
        try:
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        except (OSError, ValueError):  # no such group here, or one without a limit
            continue
        rooms.append(max(0, most - used + _stat(folder, reclaimed)))
    return rooms


def _cgroups() -> Iterator[tuple[Path, str, str, str]]:
    """The process's cgroups and all above them: directory, and names of limit, usage and page cache that the kernel drops
    when room is needed (which counts in the usage). A container sees its own group as the root."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    for _, kinds, path in [line.split(":", 2) for line in lines if line.count(":") >= 2] + [["", "", "/"], ["", "memory", "/"]]:
        if kinds == "":
            names = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            names = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inner = Path(path.lstrip("/"))
        for part in (inner, *inner.parents):
            yield names[0] / part, *names[1:]


def _stat(folder: Path, name: str) -> int:
    try:
        pairs = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
        return int(dict(pairs).get(name, 0))
    except (OSError, ValueError):
        return 0


def _rlimit_room() -> list[int]:
    if resource is None:
        return []
    held = psutil.Process().memory_info()
    limits = [(getattr(resource, name, None), getattr(held, used, None))
              for name, used in (("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data"))]
    rooms = [(resource.getrlimit(which)[0], used) for which, used in limits if which is not None and used is not None]
    return [max(0, most - used) for most, used in rooms if most != resource.RLIM_INFINITY]
