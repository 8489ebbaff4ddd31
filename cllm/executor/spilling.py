"""Arrays on disk: one file without a name, and a thread that writes and reads it while kernels run."""

import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import numpy as np

from cllm.arrays import aligned_empty
from cllm.errors import SpillError
from cllm.planner.disks import check_directory

PIECE_BYTES = 4 << 20  # that are read or written at a time where arrays are copied to or from a file (profiling/disk.py)


class SpillFile:
    """A file in `directory` with a place for each array, all zero at first.

    It has no name from the moment it is made, so nothing is left behind however the process ends. One thread does all
    reading and writing, in the order of the calls; system calls hold no interpreter lock, so kernels run meanwhile.

    A forked child has neither the thread nor a file of its own: it makes both anew when a step begins, and refuses to end
    one that began in the parent. What lasts from step to step is not made anew: there, a child is refused.

    Parameters
    ----------
    directory : str
    sizes : dict of int by key
        Bytes of each array; values of a step are known by their buffers.
    lasts : str
        What it is for, where it lasts from step to step.

    Raises
    ------
    SpillError
        When the directory is missing, memory-backed, or has too little room.
    """

    def __init__(self, directory: str, sizes: Mapping[Hashable, int], lasts: str = ""):
        self._directory, self._lasts = directory, lasts
        self._where = f"{lasts} in {directory!r}" if lasts else f"Spill({directory!r})"
        check_directory(self._where, directory, sum(sizes.values()))
        self._places: dict[Hashable, int] = {}
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
            raise self._failed("make its file", error) from error
        self._thread: ThreadPoolExecutor | None = None
        self._flying: dict[tuple[str, Hashable, int], Future] = {}
        self._process = os.getpid()

    def begin(self) -> None:
        """A step begins, in this process."""
        if self._process != os.getpid():
            if self._lasts:
                raise SpillError(self._where, "are of the process that put them there", "a forked child",
                                 "Make a model and an optimizer there, from a snapshot.")
            self._file.close()
            self._make()

    def write_call(self, key: Hashable, array: np.ndarray) -> Callable[[], None]:
        """The call that starts to write an array to the place of `key`."""
        return lambda: self.write(key, array)

    def read_call(self, key: Hashable, array: np.ndarray) -> Callable[[], None]:
        """The call that starts to read it back."""
        return lambda: self.read(key, array)

    def wait_call(self, way: str, key: Hashable) -> Callable[[], None]:
        """The call that waits until the write or the read of `key` has ended, and raises what went wrong."""
        return lambda: self.wait(way, key)

    def write(self, key: Hashable, array: np.ndarray, at: int = 0) -> None:
        """Start to write an array to the place of `key`, from byte `at` of it on."""
        self._start("write", key, at, self._write, array)

    def read(self, key: Hashable, array: np.ndarray, at: int = 0) -> None:
        """Start to read it back."""
        self._start("read", key, at, self._read, array)

    def wait(self, way: str, key: Hashable, at: int = 0) -> None:
        """Wait until that write or read has ended, and raise what went wrong."""
        self._refuse_child()
        self._flying.pop((way, key, at)).result()

    def mapped(self, forms: Mapping[Hashable, tuple[tuple[int, ...], str]]) -> dict[Hashable, np.ndarray]:
        """The places of these keys as arrays, of a shape and a dtype each, that live in the file: what is read and written
        there goes through the system's cache of files, and is what was written last. An error of the disk ends the process
        (SIGBUS), so what must survive one goes through `stored`."""
        memory = mmap.mmap(self._file.fileno(), self._nbytes)
        return {key: np.frombuffer(memory, dtype, prod(shape), self._places[key]).reshape(shape)
                for key, (shape, dtype) in forms.items()}

    def stored(self, key: Hashable, shape: tuple[int, ...], dtype: str) -> "StoredArray":
        """The place of a key as an array that is read and written by calls."""
        return StoredArray(self, self._places[key], shape, np.dtype(dtype))

    def move(self, kind: str, array: np.ndarray, place: int) -> None:
        """Read or write an array now ("read", "write"), from byte `place` of the file on, in the thread that calls."""
        (self._read if kind == "read" else self._write)(_bytes(array), place)

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

    def _refuse_child(self) -> None:
        if self._process != os.getpid():
            raise SpillError(self._where, "a step must end in the process where it began", "a forked child",
                             "Fork between steps, or let the child leave by os._exit.")

    def _start(self, way: str, key: Hashable, at: int, work, array: np.ndarray) -> None:
        self._refuse_child()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "cllm-spill")
        self._flying[way, key, at] = self._thread.submit(work, _bytes(array), self._places[key] + at)

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
            raise self._failed(kind, error) from error

    def _failed(self, what: str, error: OSError) -> SpillError:
        return SpillError(self._where, f"must be able to {what}", str(error),
                          "Make room, choose another directory, or keep them in memory." if self._lasts else
                          "Make room, choose another directory, or plan without spilling; parameters are unchanged.")


class StoredArray:
    """An array in a `SpillFile` that is read and written piece by piece, by calls: an error of the disk is a `SpillError`.

    Attributes
    ----------
    shape, dtype, size, nbytes : as of NumPy's arrays
    """

    __slots__ = ("_file", "_place", "dtype", "nbytes", "shape", "size")

    def __init__(self, file: SpillFile, place: int, shape: tuple[int, ...], dtype: np.dtype):
        self._file, self._place, self.shape, self.dtype = file, place, shape, dtype
        self.size = prod(shape)
        self.nbytes = self.size * dtype.itemsize

    def pieces(self) -> Iterator[np.ndarray]:
        """What is in it, some elements at a time; an array is good until the next one."""
        room = aligned_empty(min(self.nbytes, PIECE_BYTES), np.uint8)
        for start in range(0, self.nbytes, PIECE_BYTES):
            piece = room[:min(PIECE_BYTES, self.nbytes - start)]
            self._file.move("read", piece, self._place + start)
            yield piece.view(self.dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """All of it, in memory."""
        whole = aligned_empty(self.shape, self.dtype)
        self._file.move("read", whole, self._place)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __setitem__(self, where, values: np.ndarray) -> None:
        """``stored[...] = values``, all of them."""
        if where is not ...:
            raise TypeError("a stored array is written whole: stored[...] = values")
        values = np.ascontiguousarray(np.broadcast_to(np.asarray(values, self.dtype), self.shape))
        self._file.move("write", values, self._place)


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))
