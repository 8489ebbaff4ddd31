"""Processes of one run that have fewer cores than threads, which nothing else tells: launchers bind processes to cores."""

import os
import socket
from collections import defaultdict
from collections.abc import Mapping

from cllm.threads.cores import binds, usable_cores

DO = "Take fewer threads or processes, or let the launcher give each as many cores as it has threads: mpirun --bind-to none"


def crowded(team, threads: int) -> list[str]:
    """A sentence for each machine on which a team's processes (`cllm.executor.groups.Team`) have more threads than cores.

    Parameters
    ----------
    team : Team
    threads : int
        Of this process; others may have other numbers.
    """
    machines = defaultdict(list)
    for rank, (name, cores, count) in enumerate(team.tell((socket.gethostname(), _cores(threads, os.environ), threads))):
        machines[name].append((rank, cores, count))
    return [sentence for name, processes in machines.items() if (sentence := _told(name, processes))]


def _cores(threads: int, environment: Mapping[str, str]) -> list[int]:
    """Those that this process will use: where OpenMP is to bind its threads, as many as it has threads, from the first."""
    return sorted(usable_cores() or ())[:threads if binds(environment) else None]


def _told(name: str, processes: list[tuple[int, list[int], int]]) -> str | None:
    cores, threads = {core for _, some, _ in processes for core in some}, sum(count for *_, count in processes)
    if not cores or threads <= len(cores):
        return None
    ranks = ", ".join(str(rank) for rank, *_ in processes)
    return (f"{name}: {threads} threads of process{'es' * (len(processes) > 1)} {ranks} share {len(cores)} "
            f"core{'s' * (len(cores) > 1)}. {DO}" + ", without OMP_PROC_BIND" * binds(os.environ) + ".")
