"""The machine that a figure was measured on, without anything that names its owner."""

import os
import platform

import psutil

from cllm.about import versions
from cllm.dispatch import cpuinfo_line
from cllm.threads.cores import usable_cores


def describe_machine() -> dict:
    """Processor, cores, memory, system, load average, versions and build flags, as plain data."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count() if (cores := usable_cores()) is None else len(cores),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": versions(),
    }


def cpu_name() -> str:
    """The processor's own name for itself, with family and model where the system tells them: the name alone is often that of a
    whole line of them; or its architecture."""
    name = cpuinfo_line("model name") or platform.processor() or platform.machine()
    family, model = cpuinfo_line("cpu family"), cpuinfo_line("model")
    return f"{name} (family {family}, model {model})" if family and model else name
