"""The control groups of this process, by which containers and services are given less than the machine has."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cgroups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Directories of the process's cgroups for a controller and of all above them, and whether they are of version 2. A
    container sees its own group as the root."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    found = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    for _, kinds, path in [*found, ["", "", "/"], ["", controller, "/"]]:
        if kinds and controller not in kinds.split(","):
            continue
        top, inner = CGROUPS / controller if kinds else CGROUPS, Path(path.lstrip("/"))
        for part in (inner, *inner.parents):
            yield top / part, not kinds


def cpu_quota() -> float | None:
    """CPUs that the process's cgroups let it use on average, 0.5 for half the time of one; None without a quota."""
    quotas = []
    for folder, unified in cgroups("cpu"):
        try:
            if unified:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            else:
                quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        except (OSError, ValueError):  # no such group here, or one without a quota
            continue
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)
