"""Text from a model: `generate`."""

from collections.abc import Iterator

import numpy as np

from cllm.checks import checked_size
from cllm.models.model import Model
from cllm.sampling.choice import Choice
from cllm.sampling.decoder import Decoder, Rereader, check_samples, checked_tokens, decoder_for


def generate(model: Model, tokens, max_new_tokens: int = 200, temperature: float = 1.0, top_k: int | None = None,
             top_p: float | None = None, seed: int = 0, num_threads: int | None = None) -> np.ndarray:
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

    Returns
    -------
    int32 array of shape (max_new_tokens,)
        The new tokens alone.

    Raises
    ------
    ConfigError, ShapeError, TokenError, NonFiniteError
    """
    return np.fromiter(stream(model, tokens, max_new_tokens, temperature, top_k, top_p, seed, num_threads), np.int32)


def stream(model: Model, tokens, max_new_tokens: int = 200, temperature: float = 1.0, top_k: int | None = None,
           top_p: float | None = None, seed: int = 0, num_threads: int | None = None) -> Iterator[int]:
    """The same, token by token as they are made."""
    choice = Choice(temperature, top_k, top_p, seed)
    max_new_tokens = checked_size("generate(max_new_tokens=...)", max_new_tokens, 0)
    check_samples(model)
    tokens = np.asarray(tokens)
    longest = model.program.longest or tokens.size + max_new_tokens
    seen = checked_tokens(model, tokens[-longest:] if tokens.ndim == 1 else tokens, longest).tolist()
    decoder = decoder_for(model, num_threads, longest)
    fresh = seen
    for number in range(max_new_tokens):
        if decoder.position + len(fresh) > longest:
            decoder.reset()
            fresh = seen[-max(1, longest // 2):]
        token = choice(decoder.read(np.array(fresh))[-1], number)
        seen.append(token)
        fresh = [token]
        yield token


__all__ = ["Choice", "Decoder", "Rereader", "decoder_for", "generate", "stream"]
