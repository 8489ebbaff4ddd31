"""Snapshots of training, written whole or not at all."""

from cllm.snapshot.base import Base, base_names
from cllm.snapshot.directory import (
    is_whole,
    load_snapshot,
    prune,
    read_state,
    set_aside,
    snapshots,
    step_of,
    sweep,
    write_snapshot,
)

__all__ = ["Base", "base_names", "is_whole", "load_snapshot", "prune", "read_state", "set_aside", "snapshots", "step_of",
           "sweep", "write_snapshot"]
