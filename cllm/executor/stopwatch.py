"""How long a process works for itself in a step, apart from waiting for others: told in progress, and nothing depends on it."""

from collections.abc import Callable
from time import perf_counter
from typing import Any


class Stopwatch:
    """Goes on from `begin`, and stands still while others are waited for."""

    def __init__(self):
        self._began = self._waited = 0.0

    def begin(self) -> None:
        """From now on, anew."""
        self._began, self._waited = perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """So far."""
        return perf_counter() - self._began - self._waited

    def waits(self, call: Callable, *arguments) -> Any:
        """What a call returns that waits for others."""
        began = perf_counter()
        try:
            return call(*arguments)
        finally:
            self._waited += perf_counter() - began
