"""Tokens from a model: `generate`, and the same as a stream."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from cllm.checks import checked_size
from cllm.models.model import Model
from cllm.sampling.choice import Choice
from cllm.sampling.decoder import check_samples, checked_ids, checked_tokens, decoder_for


def generate(model: Model, tokens: ArrayLike, max_new_tokens: int = 200, temperature: float = 1.0, top_k: int | None = None,
             top_p: float | None = None, seed: int = 0, num_threads: int | None = None,
             among: ArrayLike | None = None, stop: Iterable[int] = ()) -> np.ndarray:
    """Continue a text.

    Each new token costs one row of forward: keys and values of earlier tokens are kept. When `max_seq_len` tokens are
    reached, the model reads the last half of them anew and goes on from there.

    Parameters
    ----------
    model : Model
    tokens : integers of shape (n,)
        What to continue, at least one.
    max_new_tokens : int
    temperature, top_k, top_p, seed : see `Choice`
    num_threads : int or None
    among : integers of shape (n,), or None
        The ids that may be drawn, such as those of a tokenizer with text: a model may have more. None is all.
    stop : collection of int
        Ids after which nothing follows.

    Returns
    -------
    int32 array of shape (max_new_tokens,), or shorter
        The new tokens alone, that which ended them included.

    Raises
    ------
    ConfigError, ShapeError, TokenError, NonFiniteError
    """
    made = stream(model, tokens, max_new_tokens, temperature, top_k, top_p, seed, num_threads, among, stop)
    return np.fromiter(made, np.int32)


def stream(model: Model, tokens, max_new_tokens: int = 200, temperature: float = 1.0, top_k: int | None = None,
           top_p: float | None = None, seed: int = 0, num_threads: int | None = None, among=None,
           stop=()) -> Iterator[int]:
    """The same, token by token as they are made."""
    check_samples(model)
    choice = Choice(temperature, top_k, top_p, seed)
    max_new_tokens = checked_size("generate(max_new_tokens=...)", max_new_tokens, 0)
    among = None if among is None else np.unique(checked_ids("generate(among=...)", model, among))
    stop = frozenset(int(token) for token in stop)
    tokens = np.asarray(tokens)
    longest = model.program.longest or tokens.size + max_new_tokens
    seen = checked_tokens(model, tokens[-longest:] if tokens.ndim == 1 else tokens, longest).tolist()
    decoder = decoder_for(model, num_threads, longest)
    fresh = seen
    for number in range(max_new_tokens):
        if decoder.position + len(fresh) > longest:
            decoder.reset()
            fresh = seen[-max(1, longest // 2):]
        token = choice(decoder.read(np.array(fresh))[-1], number, among)
        seen.append(token)
        fresh = [token]
        yield token
        if token in stop:
            return
