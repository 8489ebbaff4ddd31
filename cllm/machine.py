"""What the machine has free, by its cgroup where there is one."""

from pathlib import Path

import psutil

MARGIN_SHARE = 0.05  # of what is free, left to the rest of the process and to page tables
MARGIN_BYTES = 64 << 20


def free_bytes() -> int:
    """Bytes that a process may still take: the lesser of free memory and the cgroup's room, less a margin."""
    free = min([psutil.virtual_memory().available, *_cgroup_room()])
    return max(1, int(free * (1 - MARGIN_SHARE)) - MARGIN_BYTES)


def _cgroup_room() -> list[int]:
    rooms = []
    for limit, usage in (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
                         ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes")):
        try:
            rooms.append(int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):
            continue
    return [room for room in rooms if room > 0]
