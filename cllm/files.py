"""Files that appear whole or not at all: written beside their place under a hidden name, synced, then renamed."""

import errno
import hashlib
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time
_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.\d+\.partial(\..*)?", re.DOTALL)


@contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A place to write a file at, which takes that of `path` when all went well; else what was at `path` stays.

    Links are followed, the mode of a file that is replaced is kept, a new one has that of any new file. What killed
    processes left of earlier attempts is removed.

    Raises
    ------
    OSError
        When it cannot be written, or what is at `path` is no file: a directory, a device, a pipe.
    ValueError
        When no file can have that name.
    """
    final = Path(os.path.realpath(path))
    mode = _mode(final)
    name = final.name[:48]  # with what follows it stays below the longest name that a system takes
    partial = final.with_name(f".{name}.{os.getpid()}.{threading.get_native_id()}.partial{final.suffix[:16]}")
    sweep(final.parent, name)
    try:
        yield partial
        sync(partial)
        if mode is not None:
            os.chmod(partial, mode)
        os.replace(partial, final)
        sync(final.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: Path, parts: Iterable[bytes]) -> dict:
    """Write and sync a file where nothing else looks yet; its size and sha256."""
    digest, nbytes = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            nbytes += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": nbytes, "sha256": digest.hexdigest()}


def digest_file(path: Path) -> dict:
    """Size and sha256 of a file."""
    digest, nbytes = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            nbytes += len(chunk)
    return {"bytes": nbytes, "sha256": digest.hexdigest()}


def sync(path: Path) -> None:
    """Make sure that the bytes of a file, or the names in a directory, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_stream(path: str | os.PathLike) -> bool:
    """Whether what is there is neither file nor directory: a pipe, a terminal, /dev/null."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _mode(final: Path) -> int | None:
    """Mode of the file that is there, None where there is none; refused unless it may be replaced."""
    try:
        status = os.stat(final)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "what is there is no file", str(final))
    if not os.access(final, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(final))
    return stat.S_IMODE(status.st_mode)


def sweep(directory: Path, name: str | None = None) -> None:
    """Remove what processes that are no more left in a directory: of the file of that name, or of every file."""
    with os.scandir(directory) as entries:
        left = [(entry.path, found) for entry in entries if (found := _LEFT.fullmatch(entry.name))]
    for path, found in left:
        if name in (None, found["name"]) and not _is_alive(int(found["pid"])):
            Path(path).unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
