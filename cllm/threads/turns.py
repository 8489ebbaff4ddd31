"""One thread at a time: the turn that a Python thread takes before it uses what only one may use."""

import os
import threading
from weakref import WeakSet

from cllm.errors import ConfigError

_turns: "WeakSet[Turn]" = WeakSet()


class Turn:
    """A lock that other threads wait for, and that the thread which has it is refused: it would wait for itself.

    Use it as ``with turn():``. Waiting is chosen over refusing because a step that another thread asks for has a right
    answer, a moment later; whether it is given must not hang on who came first.

    In a forked child it is free, unless the forking thread itself has it: the others are gone and will not give it back.

    Parameters
    ----------
    where : str
        What it guards, for the error.
    """

    __slots__ = ("__weakref__", "_lock", "_where")

    def __init__(self, where: str):
        self._where = where
        self._lock = threading.RLock()
        _turns.add(self)

    def __call__(self) -> threading.RLock:
        """The lock, to be taken by ``with``.

        Raises
        ------
        ConfigError
            When this thread has it already.
        """
        if self._lock._is_owned():
            raise ConfigError(self._where, "must not be used from within a step of its own",
                              "a call by the thread that runs it",
                              "Make another executor or model for what a layer does, or call it between steps.")
        return self._lock

    def __reduce__(self):
        return Turn, (self._where,)  # a copy is free

    def renew(self) -> None:
        """Make it free, unless this thread has it."""
        if not self._lock._is_owned():
            self._lock = threading.RLock()


def _renew_all() -> None:
    for turn in list(_turns):
        turn.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
