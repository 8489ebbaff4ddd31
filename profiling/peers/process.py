"""Contestants in processes of their own: pinned to as many processors as they have threads, their pools capped.

Two libraries in one process disturb each other: their idle threads spin, their buffers share caches. This module needs
the standard library alone, like `harness.py`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

from harness import burst

ROOT = Path(__file__).resolve().parents[2]
PROFILING = ROOT / "profiling"

# A build in the checkout serves when nothing is installed; what is installed comes first.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

# What OpenMP's idle threads do in every contestant: "default" spins for a while and then sleeps, as users have it (cllm for
# less than a millisecond, others for some), which the pause between bursts outlasts; "passive" sleeps at once, which short
# parallel regions pay for.
WAIT_POLICIES = ("default", "passive", "active")
wait_policy = "default"

# The same for OpenBLAS, whose threads otherwise spin for a tenth of a second after a burst and halve the next contestant:
# 2 to this power cycles, about a millisecond.
OPENBLAS_SPIN = "22"


# Runs a file with profiling/ in front of the import path, not the file's own folder: there a `kernels.py` lies beside
# others of that name.
RUN = "import runpy, sys; sys.path[0] = sys.argv[1]; runpy.run_path(sys.argv[2], run_name='__main__')"


class PeerError(RuntimeError):
    """A contestant could not do what was asked; the others go on."""


class Peer:
    """A contestant in a fresh process: ``peer.ask("burst", repeats=3)`` calls its function of that name.

    Parameters
    ----------
    script : str
        Its file, from profiling/; it imports from there, as every script does.
    threads : int
    python : str
        The interpreter.
    launcher : sequence of str
        The command that starts it, several times perhaps: then `threads` are of each, and what is asked goes to the first.
    processors : int or None
        To pin to; None is as many as threads.
    **variables : str
        What is added to its environment.
    """

    def __init__(self, script: str, threads: int, python: str = sys.executable, launcher: Sequence[str] = (),
                 processors: int | None = None, **variables: str):
        if shutil.which(python) is None:
            raise PeerError(f"there is no interpreter {python}")
        prefix = (*pinned(processors or threads), *launcher)
        self._process = subprocess.Popen([*prefix, python, "-c", RUN, str(PROFILING), str(PROFILING / script)], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         env={**environment(threads), **variables})
        self.pid = self._process.pid

    def ask(self, what: str, **arguments):
        """Call one of the contestant's functions and wait for what it returns.

        Raises
        ------
        PeerError
            When it raised, or died.
        """
        try:
            self._process.stdin.write(json.dumps({"what": what, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"the process ended with code {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """End the process and wait for its end."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()


def serve(**functions: Callable) -> None:
    """Be a contestant: answer the requests of `Peer.ask` until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints by mistake must not get between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"value": functions[request["what"]](**request["arguments"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")


def serve_kernels(cases: Callable[..., dict]) -> None:
    """Be a contestant of kernels: `cases(threads)` maps a kernel's name to a function of the shape, which returns a
    call and the list of arrays that hold its results. A kernel that it does not have is prepared as None."""
    made: dict[str, Callable[[], object]] = {}

    def prepare(kernel: str, shape: list[int], settings: dict) -> dict | None:
        made.clear()  # the arrays of the case before
        known = cases(**settings)
        if kernel not in known:
            return None
        call, results = known[kernel](*shape)
        call()
        # One number that tells a wrong result: the mean magnitude, over all that the first call wrote.
        digest = sum(float(abs(one).sum()) for one in results) / sum(prod(one.shape) for one in results)
        made["call"] = call
        return {"digest": digest, "seconds": burst(call, 1)[0]}

    serve(prepare=prepare, burst=lambda repeats: burst(made["call"], repeats))


def environment(threads: int) -> dict[str, str]:
    """Environment of a contestant: every pool capped at `threads`, each OpenMP thread on a processor of its own, idle
    ones as `wait_policy` says, and BLAS choosing its kernels for itself.

    Binding matters where idle threads sleep: the system likes to wake them on the processor of the one that wakes.
    """
    tuned = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_WAIT_POLICY",
             "GOMP_SPINCOUNT")
    kept = {name: value for name, value in os.environ.items() if name not in tuned}
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
             "NUMEXPR_NUM_THREADS")
    waiting = {} if wait_policy == "default" else {"OMP_WAIT_POLICY": wait_policy}
    return {**kept, **dict.fromkeys(pools, str(threads)), **waiting, "OPENBLAS_THREAD_TIMEOUT": OPENBLAS_SPIN,
            "OMP_DYNAMIC": "FALSE", "MKL_DYNAMIC": "FALSE", "OMP_PROC_BIND": "close", "OMP_PLACES": "threads"}


def processors(threads: int) -> set[int] | None:
    """The last `threads` processors this process may use (the first serve most interrupts); None if not known."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return set(sorted(os.sched_getaffinity(0))[-threads:])


def has_torch(python: str) -> bool:
    """Whether that interpreter finds PyTorch; it is not imported."""
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return shutil.which(python) is not None and subprocess.run([python, "-c", find]).returncode == 0


def pinned(threads: int) -> list[str]:
    """A command that pins itself, then becomes the contestant: affinity must stand before any pool is made."""
    chosen = processors(threads)
    if chosen is None:
        return []
    pin = f"import os, sys; os.sched_setaffinity(0, {sorted(chosen)}); os.execvp(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-S", "-c", pin]
