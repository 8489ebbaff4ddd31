"""What memory is free, by the machine, by the process's cgroups and by its resource limits."""

from pathlib import Path

import psutil

from cllm.cgroups import cgroups

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None

MARGIN_SHARE = 0.05  # of what is free, left to the rest of the process and to page tables
MARGIN_BYTES = 64 << 20


def free_bytes() -> int:
    """Bytes that a process may still take, less a margin: the least of free memory, the room in each of its cgroups, and
    the room below RLIMIT_AS and RLIMIT_DATA."""
    free = min([psutil.virtual_memory().available, *_cgroup_room(), *_rlimit_room()])
    return max(1, int(free * (1 - MARGIN_SHARE)) - MARGIN_BYTES)


def _cgroup_room() -> list[int]:
    rooms = []
    for folder, unified in cgroups("memory"):
        # The page cache that the kernel drops when room is needed counts in the usage.
        limit, usage, reclaimed = (("memory.max", "memory.current", "inactive_file") if unified else
                                   ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
        try:
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        except (OSError, ValueError):  # no such group here, or one without a limit
            continue
        rooms.append(max(0, most - used + _stat(folder, reclaimed)))
    return rooms


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
