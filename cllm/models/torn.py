"""Whether weights, or an optimizer's states, are those of one step: an update that was broken off leaves them torn."""

from collections.abc import Iterator
from contextlib import contextmanager

from cllm.errors import TornError


class Torn:
    """The mark. What is torn refuses every call, until a load has restored it.

    Parameters
    ----------
    what : str
        That may be torn, for the error.

    Attributes
    ----------
    reason : str
        What broke off the update and what had moved; empty where nothing is torn.
    """

    __slots__ = ("_what", "reason")

    def __init__(self, what: str):
        self._what, self.reason = what, ""

    def __bool__(self) -> bool:
        return bool(self.reason)

    def refuse(self) -> None:
        """Raise where it is torn.

        Raises
        ------
        TornError
        """
        if self.reason:
            raise TornError(self._what, "must be of one step", self.reason,
                            "Load a snapshot into model and optimizer (cllm.snapshot.load_snapshot), or make them anew.")

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Within, everything is written anew; the mark goes when that succeeds, and where it does not, one that was made within
        stays."""
        reason, self.reason = self.reason, ""
        try:
            yield
        except BaseException:
            self.reason = self.reason or reason
            raise
