"""The copy that the kernels bound by memory are measured against: glibc's own, one share a thread."""

import ctypes

import harness
import numpy as np

from peers import process


def serve() -> None:
    """Be a contestant: `prepare` names the library built from machine/limits.c and how many bytes to copy."""
    made = {}

    def prepare(library: str, nbytes: int, threads: int) -> dict:
        made.clear()  # the arrays of the case before
        copy = ctypes.CDLL(library).copy_bytes
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
        arguments = target.ctypes.data, source.ctypes.data, nbytes, threads
        made["arrays"], made["call"] = (source, target), lambda: copy(*arguments)
        made["call"]()
        if not target.all():
            raise ValueError(f"the copy of {nbytes} bytes left some out")
        return {"seconds": harness.burst(made["call"], 1)[0]}

    process.serve(prepare=prepare, burst=lambda repeats: harness.burst(made["call"], repeats))


if __name__ == "__main__":
    serve()
