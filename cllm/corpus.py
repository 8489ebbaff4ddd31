"""Text to train on: the embedded novel, a user's file, and the windows that a step is made of."""
import gzip
from importlib.resources import files
from numbers import Integral
from os import PathLike

import numpy as np

from cllm.errors import ConfigError, DataError

EMBEDDED = "texts/pride_and_prejudice.txt.gz"


def embedded_text() -> bytes:
    """The text that cllm brings along, "Pride and Prejudice": 684,769 bytes of ASCII."""
    return gzip.decompress(files("cllm").joinpath(EMBEDDED).read_bytes())


def read_text(path: str | PathLike) -> bytes:
    """All bytes of a file.

    Raises
    ------
    DataError
        If the file cannot be read, or is empty.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"text {path}", "must be a file that can be read", reason[0].lower() + reason[1:],
                        "Give the path of a text file, or no path for the embedded text.") from error
    if not text:
        raise DataError(f"text {path}", "must not be empty", "0 bytes", "Give a file with text in it.")
    return text


def batch(tokens, batch_size: int, seq_len: int, step: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The windows of one step, and the tokens that follow in each: a function of the arguments alone.

    Step s of a run can be drawn without the steps before it, so a resumed run sees what the straight run sees.
    Starts are raw words of the counter-based generator Philox (Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", 2011) keyed by (seed, step), modulo the number of windows: unlike a generator's distributions, these
    words are the same in every version of NumPy.

    Parameters
    ----------
    tokens : integer array of shape (n,)
        The whole text, n >= seq_len + 1.
    batch_size, seq_len : int
        B and T.
    step : int
        Number of the step, from 0.
    seed : int
        0 .. 2**64 - 1.

    Returns
    -------
    inputs, targets : int32 arrays of shape B T
        ``targets[b, t]`` is the token after ``inputs[b, t]``.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("seq_len", seq_len, 1), ("step", step, 0),
                               ("seed", seed, 0)):
        if not isinstance(value, Integral) or not least <= value < 2**64:
            raise ConfigError(f"batch({name}=...)", f"must be a whole number, at least {least} and below 2**64",
                              repr(value), "Pass a number in that range.")
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError("batch(tokens=...)", "must be integers in one axis", f"{tokens.dtype} of shape {tokens.shape}",
                        "Pass what a tokenizer's encode() returns.")
    windows = tokens.size - seq_len
    if windows < 1:
        raise DataError("batch(tokens=...)", f"must have at least seq_len + 1 = {seq_len + 1} tokens",
                        str(tokens.size), "Take a longer text or a smaller seq_len.")
    words = np.random.Philox(key=np.array([seed, step], np.uint64)).random_raw(batch_size)
    starts = (words % np.uint64(windows)).astype(np.int64)
    rows = tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int32)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
