"""What runs here: versions, the build's switches and flags, threads, the CPU."""
import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from cllm import _build_info, _kernels
from cllm.platform_guard import cpuinfo_line
from cllm.threads.counts import default_threads, describe_threads
from cllm.threads.waiting import describe_waiting


def versions() -> dict[str, object]:
    """Versions, build and machine, as plain values that JSON can hold.

    Returns
    -------
    dict
        ``cllm``, ``python``, ``numpy``, ``cython``, ``compiler`` : versions;
        ``march``, ``flags``, ``openmp``, ``debug`` : what the extension was built with;
        ``vector_bytes`` : bytes in one vector register as the kernels use it;
        ``threads``, ``threads_because``, ``waiting`` : the number where none is given, why it is that, and how idle
        threads wait;
        ``cpu`` : name of the CPU, None where it does not say; ``cpu_features`` : those that the build may use, by
        their names in /proc/cpuinfo (this CPU has them all);
        ``bfloat16`` : the instruction of products in bfloat16, "emulated" for multiply-adds of float32 on rounded operands.
    """
    try:
        installed = version("cllm")
    except PackageNotFoundError:
        installed = None
    return {
        "cllm": installed,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cython": _build_info.CYTHON,
        "compiler": _build_info.COMPILER,
        "march": _build_info.MARCH,
        "flags": list(_build_info.FLAGS),
        "openmp": _build_info.OPENMP,
        "debug": _build_info.DEBUG,
        "vector_bytes": _kernels.vector_bytes(),
        "threads": default_threads(),
        "threads_because": describe_threads(),
        "waiting": describe_waiting(),
        "cpu": cpuinfo_line("model name"),
        "cpu_features": list(_build_info.CPU_FEATURES),
        "bfloat16": _kernels.bfloat16_instruction(),
    }
