"""What the machine can do, measured by `limits.c`: the roofs over every figure of GFLOP/s and GB/s."""

import subprocess
import sys
from pathlib import Path

from peers import process

# A buffer of this size is in no processor's cache: what a copy of it does is the memory's doing.
MEMORY_BYTES = 256 << 20
SMALLEST_BYTES = 1 << 16


class Limits:
    """The two roofs of the machine, from a small C program built for it; None where there is no compiler.

    ``library`` is the same file as a library, which `peers/copying.py` takes its turns with.

    Parameters
    ----------
    folder : Path
        Where the program may lie.
    threads : int
    """

    def __init__(self, folder: Path, threads: int):
        self._program: Path | None = folder / "limits"
        self.library: Path | None = folder / "limits.so"
        self._threads = threads
        self._flops: float | None = None
        self._moved: dict[int, float] = {}
        command = ["cc", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", str(Path(__file__).with_name("limits.c"))]
        try:
            for path, more in ((self._program, ()), (self.library, ("-shared", "-fPIC"))):
                subprocess.run([*command, *more, "-o", str(path)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            print("no C compiler with OpenMP: the shares of the machine's limit stay empty", file=sys.stderr)
            self._program = self.library = None

    def look(self, nbytes: float = 0) -> None:
        """Measure both roofs with `nbytes` at work; what is known only grows."""
        size = _rounded(nbytes)
        if self._program is None:
            return
        done = subprocess.run([str(self._program), str(self._threads), str(size)], check=True, capture_output=True,
                              text=True, env=process.environment(self._threads))
        flops, *moved = map(float, done.stdout.split())
        self._flops = max(self._flops or 0.0, flops)
        self._moved[size] = max(self._moved.get(size, 0.0), *moved)

    def flops(self) -> float | None:
        """Multiply-adds per second from registers, each counted as two; the best seen so far."""
        if self._flops is None:
            self.look()
        return self._flops

    def bandwidth(self, nbytes: float) -> float | None:
        """Bytes read and written per second where `nbytes` in all are at work: the better of copying and of changing in
        place, the best seen so far. Sizes are rounded up to powers of two from `SMALLEST_BYTES` to `MEMORY_BYTES`."""
        if _rounded(nbytes) not in self._moved:
            self.look(nbytes)
        return self._moved.get(_rounded(nbytes))


def _rounded(nbytes: float) -> int:
    size = SMALLEST_BYTES
    while size < min(nbytes, MEMORY_BYTES):
        size *= 2
    return size
