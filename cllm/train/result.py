"""How a run ended."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended.

    Attributes
    ----------
    step : int
        Steps taken in all.
    loss, val_loss : float or None
        Of the last step, and of the last evaluation, in nats per token.
    best_step, best_val_loss : of the best evaluation, or None
    snapshot : Path or None
        The last one.
    interrupted : bool
        It was told to stop before its last step.
    seconds : float
        Of this call.
    tokens : int or None
        Of the text trained on in it; None where there is no text.
    """

    step: int
    loss: float | None
    val_loss: float | None
    best_step: int | None
    best_val_loss: float | None
    snapshot: Path | None
    interrupted: bool
    seconds: float
    tokens: int | None
