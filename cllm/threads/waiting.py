"""How idle threads wait: a bounded time, unless the user says otherwise.

Between two parallel regions of a step, a thread of GNU's OpenMP runtime spins for 300,000 rounds before it sleeps, some
4 to 14 ms: far longer than any gap within a step, and as long as the system's own time slices. Where others use the
cores, the one that spins then keeps the one off that it waits for. `SPIN_COUNT` rounds are some 150 to 500 microseconds;
gaps within a step are 1 to 50. A limit near these is dear: a thread that the system has kept off for a moment finds the
others asleep, waking them makes them late, and with 3,000 rounds whole steps went at the pace of being woken.

The runtime reads its variables when it is loaded, so they are set for that moment alone, and child processes do not
inherit them.
"""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# A round is one `pause`, 40 cycles on AMD and 140 on Intel; on other processors it is a load and a branch.
SPIN_COUNT = 10_000 if platform.machine() in ("x86_64", "AMD64", "i686") else 100_000
MAPS = Path("/proc/self/maps")

_how = "not known"


def describe_waiting() -> str:
    """How idle threads wait, for people."""
    return _how


@contextmanager
def bounded_spinning() -> Iterator[None]:
    """Load the runtime inside of this; it then spins for at most `SPIN_COUNT` rounds."""
    global _how
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    before = _runtimes()
    if not given:
        os.environ[VARIABLES[0]] = str(SPIN_COUNT)
    try:
        yield
    finally:
        if not given:
            del os.environ[VARIABLES[0]]
    now = _runtimes()
    loaded = now - before
    if not now:
        _how = "no OpenMP runtime, or none that can be seen"
    elif not loaded:
        _how = f"as {', '.join(sorted(now))} does, which another library loaded before cllm: import cllm first"
    elif given:
        _how = f"as {', '.join(given)} says"
    elif not any("gomp" in name for name in loaded):
        _how = f"as {', '.join(sorted(loaded))} does"
    else:
        _how = f"spin for {SPIN_COUNT} rounds, then sleep"


def _runtimes() -> set[str]:
    """Files of OpenMP runtimes that this process has loaded, where the system tells."""
    try:
        text = MAPS.read_text()
    except OSError:
        return set()
    return set(re.findall(r"/(lib[gi]?omp5?[-.][^/\s]*)$", text, re.MULTILINE))
