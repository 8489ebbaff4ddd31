"""How fast a directory's disk takes and gives bytes: through the system's page cache, and down to the device.

    python profiling/disk.py DIR

Spilled values go through the page cache: while the machine has memory to spare, writes end there and reads come from
there. The device's own figures say what remains when it has not: a write until fsync returns, a read after the pages
were dropped.
"""

import os
import sys
import tempfile

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

        def write() -> None:
            for place in places:
                os.pwrite(number, chunk, place)

        def read() -> None:
            for place in places:
                os.preadv(number, [room], place)

        def seconds(call) -> float:
            return harness.burst(call, 1)[0]

        cached_write = seconds(write)
        flush = seconds(lambda: os.fsync(number))
        cached_read = seconds(read)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        device_read = seconds(read)
    total = len(places) * CHUNK_BYTES
    return {"cached_write": total / cached_write, "device_write": total / (cached_write + flush),
            "cached_read": total / cached_read, "device_read": total / device_read}


def in_words(found: dict[str, float]) -> str:
    """The four figures in a line."""
    return ", ".join(f"{name.replace('_', ' ')} {rate / 1e6:,.0f} MB/s" for name, rate in found.items())


if __name__ == "__main__":
    print(in_words(bandwidth(sys.argv[1])))
