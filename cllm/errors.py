"""The error tree: every error says where, what must hold, what was got, and what to do."""


class CllmError(Exception):
    """Base of all errors that cllm raises.

    Parameters
    ----------
    where : str
        The call, argument or file that is at fault, as the user wrote it: ``"Executor(batch_size=...)"``.
    must : str
        What has to hold, a clause: ``"must be at least 1"``.
    got : str
        What was met instead.
    do : str
        What the user can do about it, a sentence.
    """

    def __init__(self, where: str, must: str, got: str, do: str):
        super().__init__(where, must, got, do)
        self.where, self.must, self.got, self.do = where, must, got, do

    def __str__(self) -> str:
        return f"{self.where}: {self.must}; got {self.got}. {self.do}"


class ConfigError(CllmError, ValueError):
    """A setting is outside what it may be."""


class ShapeError(CllmError, ValueError):
    """An array has the wrong number of axes, the wrong lengths, or is empty where it must not be."""


class DtypeError(CllmError, TypeError):
    """An array has elements of the wrong kind."""


class LayoutError(CllmError, ValueError):
    """An array is not C-contiguous, or cannot be written to."""


class TokenError(CllmError, ValueError):
    """A token or target id is outside the vocabulary, or no target is valid."""


class DeclarationError(CllmError, TypeError):
    """A layer's declaration and its methods contradict each other."""


class PlanError(CllmError, ValueError):
    """A plan does not fit the program it is meant for."""


class BudgetError(CllmError, MemoryError):
    """No allowed plan keeps the memory limit.

    Attributes
    ----------
    least : int or None
        The least limit that works, in bytes; None where that is not what is wrong.
    """

    def __init__(self, where: str, must: str, got: str, do: str, least: int | None = None):
        super().__init__(where, must, got, do)
        self.least = least


class NonFiniteError(CllmError, ArithmeticError):
    """NaN or infinity in the loss or in a gradient."""


class TornError(CllmError, RuntimeError):
    """Weights or an optimizer's states are of no one step: an update was broken off."""


class SpillError(CllmError):
    """Values cannot be put on disk or fetched from it."""


class RebuildError(CllmError, RuntimeError):
    """A rebuilt value differs from the original."""


class OptimizerError(CllmError, ValueError):
    """An optimizer does not fit the model or what was planned for it."""


class DataError(CllmError, ValueError):
    """A text or token file cannot be used."""


class SnapshotError(CllmError, ValueError):
    """A snapshot cannot be written, or is damaged or foreign."""


class BuildError(CllmError, ImportError):
    """The compiled extension does not fit this machine."""
