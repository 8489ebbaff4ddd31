"""Ctrl-C in a step that moves parameters: it waits for the end of the step, so that nothing is torn."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Within, a Ctrl-C waits, and is raised at the end; a second one is raised at once.

    Only where Python's own handler stands, in the main thread: whoever has another one, as `Trainer` does, has decided.
    """
    if (threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler):
        yield
        return
    came = 0

    def note(_number, _frame) -> None:
        nonlocal came
        came += 1
        if came > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came == 1:
            raise KeyboardInterrupt
