"""Checks of what users hand to a step, before anything is written."""

import numpy as np

from cllm.config import checked_size
from cllm.errors import DtypeError, ShapeError, TokenError
from cllm.program.workload import Workload


def checked_batch(workload: Workload, tokens, targets, num_targets: int | None) -> tuple:
    """Tokens and targets as arrays of shape B T, and the divisor of the loss.

    Parameters
    ----------
    tokens, targets : integer arrays of shape B T
    num_targets : int or None
        None counts the targets that are not -1.

    Raises
    ------
    ShapeError, DtypeError, TokenError, ConfigError
    """
    tokens = checked_tokens(workload, tokens)
    targets = _integers("targets", targets, workload, -1)
    if num_targets is not None:
        return tokens, targets, checked_size("num_targets", num_targets)
    count = int(np.count_nonzero(targets != -1))
    if not count:
        raise TokenError("targets", "at least one must not be -1", "none", "Skip this batch, or pass num_targets.")
    return tokens, targets, count


def checked_tokens(workload: Workload, tokens) -> np.ndarray:
    """Tokens as an array of shape B T; errors as `checked_batch`."""
    return _integers("tokens", tokens, workload, 0)


def _integers(name: str, array, workload: Workload, least: int) -> np.ndarray:
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise ShapeError(name, "must be an array", str(error), "Pass rows of equal length.") from error
    if array.dtype.kind not in "iu":
        raise DtypeError(name, "must hold integers", str(array.dtype), "Pass token ids, for example as int32.")
    shape = (workload.batch, workload.time)
    if array.shape != shape:
        raise ShapeError(name, f"must have the shape (batch_size, seq_len) = {shape}", str(array.shape),
                         "Reshape the batch, or make an Executor for its shape.")
    low, high = int(array.min()), int(array.max())
    if low < least or high >= workload.config.vocab_size:
        bad = low if low < least else high
        raise TokenError(name, f"must be from {least} to {workload.config.vocab_size - 1}", str(bad),
                         "Check the tokenizer, or make the model with a larger vocab_size.")
    return array
