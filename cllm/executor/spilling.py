"""Values on disk: one file without a name, and a thread that writes and reads it while kernels run."""

import errno
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from cllm.errors import SpillError

MEMORY_BACKED = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
SPARE_BYTES = 64 << 20  # of free space, left to others


class SpillFile:
    """A file in `directory` with a place for each spilled value.

    It has no name from the moment it is made, so nothing is left behind however the process ends. One thread does all
    reading and writing, in the order of the calls; system calls hold no interpreter lock, so kernels run meanwhile.

    A forked child has neither the thread nor a file of its own: it makes both anew when a step begins, and refuses to end
    one that began in the parent.

    Parameters
    ----------
    directory : str
    sizes : dict of int by buffer
        Bytes of each value.

    Raises
    ------
    SpillError
        When the directory is missing, memory-backed, or has too little room.
    """

    def __init__(self, directory: str, sizes: dict[int, int]):
        self._directory = directory
        _check_directory(directory, sum(sizes.values()))
        self._places: dict[int, int] = {}
        self._nbytes = 0
        for buffer, nbytes in sizes.items():
            self._places[buffer] = self._nbytes
            self._nbytes += nbytes
        self._make()

    def _make(self) -> None:
        """A file and no thread, for this process."""
        try:
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)
            weakref.finalize(self, self._file.close)
            os.posix_fallocate(self._file.fileno(), 0, self._nbytes)
        except OSError as error:
            raise _failed("make its file", self._directory, error) from error
        self._thread: ThreadPoolExecutor | None = None
        self._flying: dict[tuple[str, int], Future] = {}
        self._process = os.getpid()

    def begin(self) -> None:
        """A step begins, in this process."""
        if self._process != os.getpid():
            self._file.close()
            self._make()

    def write_call(self, buffer: int, array: np.ndarray) -> Callable[[], None]:
        """The call that starts to write an array to the place of `buffer`."""
        return lambda: self._start("write", buffer, self._write, _bytes(array), self._places[buffer])

    def read_call(self, buffer: int, array: np.ndarray) -> Callable[[], None]:
        """The call that starts to read it back."""
        return lambda: self._start("read", buffer, self._read, _bytes(array), self._places[buffer])

    def wait_call(self, kind: str, buffer: int) -> Callable[[], None]:
        """The call that waits until the write or the read of `buffer` has ended, and raises what went wrong."""
        return lambda: self._wait(kind, buffer)

    def settle(self) -> None:
        """Wait for whatever is under way, whatever became of it; the arena may be written again afterwards."""
        if self._process != os.getpid():
            return  # it is under way in another process
        for future in self._flying.values():
            future.cancel()
        for future in self._flying.values():
            if not future.cancelled():
                future.exception()
        self._flying.clear()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def close(self) -> None:
        """Stop the thread and give the disk space back."""
        self.settle()
        self._file.close()

    def _wait(self, kind: str, buffer: int) -> None:
        self._refuse_child()
        self._flying.pop((kind, buffer)).result()

    def _refuse_child(self) -> None:
        if self._process != os.getpid():
            raise SpillError(f"Spill({self._directory!r})", "a step must end in the process where it began", "a forked child",
                             "Fork between steps, or let the child leave by os._exit.")

    def _start(self, kind: str, buffer: int, work, view: memoryview, place: int) -> None:
        self._refuse_child()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "cllm-spill")
        self._flying[kind, buffer] = self._thread.submit(work, view, place)

    def _write(self, view: memoryview, place: int) -> None:
        self._transfer("write", lambda rest, at: os.pwrite(self._file.fileno(), rest, at), view, place)

    def _read(self, view: memoryview, place: int) -> None:
        self._transfer("read", lambda rest, at: os.preadv(self._file.fileno(), [rest], at), view, place)

    def _transfer(self, kind: str, move, view: memoryview, place: int) -> None:
        done = 0
        try:
            while done < len(view):
                count = move(view[done:], place + done)
                if not count:
                    raise OSError(errno.EIO, f"the file ended after {done} of {len(view)} bytes")
                done += count
        except OSError as error:
            raise _failed(kind, self._directory, error) from error


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _failed(what: str, directory: str, error: OSError) -> SpillError:
    return SpillError(f"Spill({directory!r})", f"must be able to {what}", str(error),
                      "Make room, choose another directory, or plan without spilling; parameters are unchanged.")


def _check_directory(directory: str, nbytes: int) -> None:
    where = f"Spill({directory!r})"
    path = Path(directory)
    if not path.is_dir():
        raise SpillError(where, "must be a directory", "none there", "Make it, or choose another.")
    kind = _file_system(path)
    if kind in MEMORY_BACKED:
        raise SpillError(where, "must be on a disk", f"a file system in memory ({kind})", "Choose a directory on a disk.")
    free = shutil.disk_usage(path).free
    if free < nbytes + SPARE_BYTES:
        raise SpillError(where, f"must have {nbytes + SPARE_BYTES:,} bytes free", f"{free:,}",
                         "Make room, or spill fewer sites.")


def _file_system(path: Path) -> str:
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda m: len(m.mountpoint), reverse=True)
    whole = str(path.resolve())
    inside = (m.fstype for m in mounts if whole == m.mountpoint or whole.startswith(m.mountpoint.rstrip("/") + "/"))
    return next(inside, "")
