"""The cores that this process may use; imported before the kernels, since OpenMP may bind the thread that is asked."""

import os
from collections.abc import Mapping

_FIRST = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def usable_cores() -> frozenset[int] | None:
    """Their numbers, None where the system does not tell them.

    Where OpenMP binds its threads, as they were at the import: later the system tells the one core of the thread that asks.
    """
    return _FIRST if _FIRST is None or binds(os.environ) else frozenset(os.sched_getaffinity(0))


def binds(environment: Mapping[str, str]) -> bool:
    """Whether OpenMP binds its threads under these variables: as OMP_PROC_BIND says, else where places are named."""
    named = any(environment.get(name) for name in ("OMP_PLACES", "GOMP_CPU_AFFINITY"))
    return environment.get("OMP_PROC_BIND", str(named)).strip().lower() != "false"
