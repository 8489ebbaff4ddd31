"""How many threads: what this process may use, what the user asked for, and the check of every number that is given."""

import os
from functools import cache
from math import ceil

from cllm import _build_info
from cllm import _kernels as kernels
from cllm.cgroups import cpu_quota
from cllm.checks import checked_size
from cllm.threads.cores import usable_cores

MOST_THREADS = 1024  # catches nonsense; what the system refuses is found when that many are to run

_asked: int | None = None


def checked_threads(num_threads: int | None, where: str = "num_threads") -> int:
    """The number of threads as an int, `default_threads` for None.

    Raises
    ------
    ConfigError
        When it is not a whole number in 1 .. `MOST_THREADS`.
    """
    return default_threads() if num_threads is None else checked_size(where, num_threads, most=MOST_THREADS)


def set_num_threads(num_threads: int | None) -> None:
    """Threads of all that is made or called from now on without a number of its own; None chooses as at first.

    An `Executor` keeps the number that it was made with.

    Raises
    ------
    ConfigError
        When it is not a whole number from 1 to 1024, or more than the system lets this process start.
    """
    global _asked
    asked = None if num_threads is None else checked_threads(num_threads)
    kernels.set_threads(asked or default_choice()[0])
    _asked = asked


def default_threads() -> int:
    """Threads where no number is given: what `set_num_threads` was told, else as `default_choice` finds."""
    return _asked or default_choice()[0]


def describe_threads() -> str:
    """Why `default_threads` is what it is, for people."""
    return "asked for by set_num_threads" if _asked else default_choice()[1]


def default_choice() -> tuple[int, str]:
    """The least of the cores that this process may use, of its cgroups' quota of CPU time, and of OMP_NUM_THREADS; and
    which of them it was.

    A quota is rounded up: two threads that share one and a half CPUs are done before one that has a CPU to itself.
    """
    if not _build_info.OPENMP:
        return 1, "built without threads"
    choices = [_cores()]
    quota = _quota()
    if quota is not None:
        choices.append((max(1, ceil(quota)), f"a cgroup's quota of {quota:g} CPUs"))
    given, note = os.environ.get("OMP_NUM_THREADS", "").strip(), ""
    if given:
        first = given.split(",")[0].strip()  # of a list, the number for regions that lie in no other
        if first.isascii() and first.isdigit() and int(first) > 0:
            choices.append((min(int(first), MOST_THREADS), f"OMP_NUM_THREADS={given}"))
        else:
            note = f"; OMP_NUM_THREADS={given} is no number above 0 and was ignored"
    number, why = min(choices, key=lambda choice: choice[0])
    return number, why + note


@cache  # it takes a dozen files to read
def _quota() -> float | None:
    return cpu_quota()


def _cores() -> tuple[int, str]:
    cores = usable_cores()
    if cores is not None:
        return min(len(cores), MOST_THREADS), "cores that this process may use"
    return min(os.cpu_count() or 1, MOST_THREADS), "cores of this machine"
