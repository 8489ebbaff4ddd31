"""One run at a time in a directory, nothing left of a run that is refused, and an end that is chosen, not suffered."""

import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cllm.corpus import RUN_MARK
from cllm.errors import SnapshotError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def only_run_in(directory: Path | None) -> Iterator[None]:
    """Hold a directory's lock; the system lets go of it when the process ends, however it ends.

    Raises
    ------
    SnapshotError
        When another run holds it, or there can be no such directory.
    """
    if directory is None:
        yield
        return
    descriptor = _locked(directory)
    try:
        yield
    finally:
        os.close(descriptor)


def refuse_if_running(directory: Path) -> None:
    """Refuse a directory that another run is in, before any work; nothing is made there."""
    if os.path.exists(directory / RUN_MARK):
        os.close(_locked(directory))


@contextmanager
def beginning_in(directory: Path | None) -> Iterator[None]:
    """Hold the lock as `only_run_in`, and take back what was made, files and the directory, when the beginning is refused."""
    if directory is None:
        yield
        return
    made = [path for path in (directory, *directory.parents) if not os.path.exists(path)]
    before = set()
    with suppress(OSError, ValueError):  # in one call, as another refused run may take it away; what cannot be is refused below
        before = set(os.listdir(directory))
    with only_run_in(directory):
        try:
            yield
        except BaseException:
            new = {name for name in os.listdir(directory) if name not in before}
            for name in sorted(new, key=lambda name: name == RUN_MARK):  # the lock last: another may be waiting for it
                if not os.path.isdir(directory / name):
                    os.unlink(directory / name)
            with suppress(OSError):  # somebody else has put something there
                for path in made:
                    path.rmdir()
            raise


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C, SIGTERM or SIGHUP; the second Ctrl-C interrupts as usual. A signal that the process
    was started to ignore, as nohup does, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, first) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _locked(directory: Path) -> int:
    """Descriptor of the directory's lock, held."""
    try:
        while True:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory / RUN_MARK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_there(directory / RUN_MARK, descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # a run that was refused has just taken its lock away
    except BlockingIOError as error:
        raise SnapshotError(f"run in {directory}", "must be the only one there", "another that is still going",
                            "Wait for it, or train into another directory.") from error
    except (OSError, ValueError) as error:
        raise SnapshotError(f"run in {directory}", "must be in a directory that can be written and locked",
                            getattr(error, "strerror", None) or str(error), "Choose another directory.") from error


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
