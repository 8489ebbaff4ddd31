"""Resident memory of a process as Linux counts it; None on other systems.

The kernel keeps the highest resident size of each process (VmHWM) and forgets it when asked to (proc(5), clear_refs),
so a peak is exact to about a MiB without any sampling. Standard library only: profiling reads other processes with it.
"""

from pathlib import Path


def resident_bytes(pid: int | str = "self") -> int | None:
    """Bytes of the process that are in memory now."""
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int | str = "self") -> int | None:
    """Most bytes of the process that were in memory since `forget_peak`, or since its start."""
    return _status_bytes(pid, "VmHWM")


def forget_peak(pid: int | str = "self") -> bool:
    """Start a new peak at the present size; False where the system does not allow it."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(pid: int | str, key: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None
