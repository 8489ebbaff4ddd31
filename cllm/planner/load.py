"""How busy the machine is while something is measured."""

import os


def load_average() -> float | None:
    """Processes that have run or waited in the last minute, in the mean; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def is_loaded(load: float | None) -> bool:
    """Whether that is more than the machine has cores for."""
    return load is not None and load > (os.cpu_count() or 1)


def load_in_words(load: float) -> str:
    """``a load of 7.2 on 2 cores``."""
    cores = os.cpu_count() or 1
    return f"a load of {load:.1f} on {cores} core{'' if cores == 1 else 's'}"
