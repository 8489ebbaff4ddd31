"""Directories for what is put on disk: which are on one, and have room."""

import os
import shutil
from pathlib import Path

import psutil

from cllm.errors import SpillError

MEMORY_BACKED = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
SPARE_BYTES = 64 << 20  # of free space, left to others


def usual_directory() -> str:
    """Where what is put on disk goes unless told: ``CLLM_SPILL_DIR``, or else the current folder."""
    return os.environ.get("CLLM_SPILL_DIR") or "."


def check_directory(where: str, directory: str, nbytes: int) -> None:
    """Refuse a directory that is none, that is in memory, or whose disk has no room for so many bytes.

    Raises
    ------
    SpillError
    """
    path = Path(directory)
    if not path.is_dir():
        raise SpillError(where, "must be a directory", "none there", "Make it, or choose another.")
    kind = file_system(path)
    if kind in MEMORY_BACKED:
        raise SpillError(where, "must be on a disk", f"a file system in memory ({kind})", "Choose a directory on a disk.")
    free = shutil.disk_usage(path).free
    if free < nbytes + SPARE_BYTES:
        raise SpillError(where, f"must have {nbytes + SPARE_BYTES:,} bytes free", f"{free:,}",
                         "Make room, choose another directory, or put less there.")


def file_system(path: Path) -> str:
    """Kind of the file system that a path is on; empty where nobody says."""
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda m: len(m.mountpoint), reverse=True)
    whole = str(path.resolve())
    inside = (m.fstype for m in mounts if whole == m.mountpoint or whole.startswith(m.mountpoint.rstrip("/") + "/"))
    return next(inside, "")
