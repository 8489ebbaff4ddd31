"""What runs here: versions, the build's switches and flags, threads, the CPU."""
import platform

import numpy as np

from cllm import _build_info, _kernels
from cllm.dispatch import built_levels, choice, cpuinfo_line, offered_features
from cllm.threads.caches import describe_blocks
from cllm.threads.counts import default_threads, describe_threads
from cllm.threads.waiting import describe_waiting

VECTORS = ("sse", "avx", "fma", "amx", "f16c", "asimd", "sve", "bf16", "i8mm")  # how their names begin


def versions() -> dict[str, object]:
    """Versions, build and machine, as plain values that JSON can hold.

    Returns
    -------
    dict
        ``cllm``, ``python``, ``numpy``, ``cython``, ``compiler`` : versions;
        ``flags``, ``openmp``, ``debug`` : what the extension in use was built with;
        ``levels`` : instruction sets that were built; ``level``, ``level_because`` : the one in use, and why;
        ``vector_bytes`` : bytes in one vector register as the kernels use it;
        ``threads``, ``threads_because``, ``waiting`` : the number where none is given, why it is that, and how idle
        threads wait;
        ``blocks`` : bytes of the blocks that products are cut into on that number of threads, and why;
        ``scaling`` : the command that measures how much faster steps are on more threads, None where there is but one;
        ``cpu`` : name of the CPU, None where it does not say; ``cpu_features`` : those that the level may use, by
        their names in /proc/cpuinfo (this CPU has them all); ``cpu_vectors`` : all that this CPU has for vectors, used
        or not, None where the system does not say;
        ``bfloat16`` : what makes products in bfloat16: "avx512_bf16" where its instruction is used; "amx" where it makes those
        in units, and others are emulated; "emulated" for multiply-adds of float32 on rounded operands.
    """
    level, offered = choice().level, offered_features()
    return {
        "cllm": _build_info.VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cython": _build_info.CYTHON,
        "compiler": _build_info.COMPILER,
        "levels": [built.name for built in built_levels()],
        "level": level.name,
        "level_because": choice().because,
        "flags": list(level.flags),
        "openmp": _build_info.OPENMP,
        "debug": _build_info.DEBUG,
        "vector_bytes": _kernels.vector_bytes(),
        "threads": default_threads(),
        "threads_because": describe_threads(),
        "waiting": describe_waiting(),
        "blocks": describe_blocks(default_threads()),
        "scaling": scaling_command(default_threads()),
        "cpu": cpuinfo_line("model name"),
        "cpu_features": list(level.features),
        "cpu_vectors": None if offered is None else sorted(name for name in offered if name.startswith(VECTORS)),
        "bfloat16": _kernels.bfloat16_instruction(),
    }


def scaling_command(threads: int) -> str | None:
    """``cllm compare --threads 1,2,4,...`` up to so many."""
    counts = [1 << power for power in range(threads.bit_length()) if 1 << power < threads]
    return f"cllm compare --threads {','.join(map(str, (*counts, threads)))}" if threads > 1 else None
