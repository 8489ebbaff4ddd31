"""Snapshots of training, written whole or not at all."""

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

__all__ = ["is_whole", "load_snapshot", "prune", "read_state", "set_aside", "snapshots", "step_of", "sweep",
           "write_snapshot"]
