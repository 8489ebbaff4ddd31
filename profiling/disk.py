"""How fast a directory's disk takes and gives bytes: through the system's page cache, and down to the device.

    python profiling/disk.py DIR

What is put on disk goes through the page cache: while the machine has memory to spare, writes end there and reads come from
there. The device's own figures say what remains when it has not: past the page cache where the file system can (O_DIRECT),
and a write until fsync returns, a read after the pages were dropped.
"""

import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterable

import harness

CHUNK_BYTES = 8 << 20
PROBE_BYTES = 512 << 20


def bandwidth(directory: str, nbytes: int = PROBE_BYTES) -> dict[str, float]:
    """Bytes per second of writing and reading `nbytes` in a file of `directory`: ``cached_write``, ``device_write``,
    ``cached_read``, ``device_read``."""
    chunk = memoryview(os.urandom(CHUNK_BYTES))
    room = bytearray(CHUNK_BYTES)
    places = range(0, nbytes // CHUNK_BYTES * CHUNK_BYTES, CHUNK_BYTES)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        number = file.fileno()
        cached_write = _seconds(lambda place: os.pwrite(number, chunk, place), places)
        flush = _once(lambda: os.fsync(number))
        cached_read = _seconds(lambda place: os.preadv(number, [room], place), places)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        device_read = _seconds(lambda place: os.preadv(number, [room], place), places)
    total = len(places) * CHUNK_BYTES
    return {"cached_write": total / cached_write, "device_write": total / (cached_write + flush),
            "cached_read": total / cached_read, "device_read": total / device_read}


def direct(directory: str, nbytes: int = PROBE_BYTES) -> dict[str, float] | None:
    """Bytes per second of writing and reading past the page cache, ``write`` and ``read``; None where the file system has no
    O_DIRECT."""
    room = mmap.mmap(-1, CHUNK_BYTES)  # a whole page begins it, as O_DIRECT asks for
    room.write(os.urandom(CHUNK_BYTES))
    places = range(0, nbytes // CHUNK_BYTES * CHUNK_BYTES, CHUNK_BYTES)
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        number = None
        try:
            number = os.open(file.name, os.O_RDWR | os.O_DIRECT)
            write = _seconds(lambda place: os.pwritev(number, [room], place), places)
            read = _seconds(lambda place: os.preadv(number, [room], place), places)
        except (OSError, AttributeError):  # the second: a system that has no such flag
            return None
        finally:
            if number is not None:
                os.close(number)
    total = len(places) * CHUNK_BYTES
    return {"write": total / write, "read": total / read}


def to_the_device(directory: str, nbytes: int = PROBE_BYTES) -> dict:
    """Bytes per second of the device, ``write`` and ``read``, and ``how`` that was found."""
    if found := direct(directory, nbytes):
        return {**found, "how": "O_DIRECT"}
    whole = bandwidth(directory, nbytes)
    return {"write": whole["device_write"], "read": whole["device_read"],
            "how": "a write until fsync returns, a read after the page cache was dropped"}


def in_words(found: dict[str, float]) -> str:
    """The four figures in a line."""
    return ", ".join(f"{name.replace('_', ' ')} {rate / 1e6:,.0f} MB/s" for name, rate in found.items())


def _seconds(move: Callable[[int], int], places: Iterable[int]) -> float:
    """Of moving a chunk to or from each place."""
    def all_of_them() -> None:
        for place in places:
            if move(place) != CHUNK_BYTES:
                raise OSError("the disk moved less than it was given")

    return _once(all_of_them)


def _once(call: Callable[[], None]) -> float:
    return harness.burst(call, 1)[0]


if __name__ == "__main__":
    print(in_words(bandwidth(sys.argv[1])))
    past = direct(sys.argv[1])
    print("no O_DIRECT here" if past is None else f"O_DIRECT: {in_words(past)}")
