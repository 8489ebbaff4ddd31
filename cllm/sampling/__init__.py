"""Text from a model: `generate`, also as ``model.generate``."""

from collections.abc import Iterator

import numpy as np

from cllm.config import checked_size
from cllm.models.gpt import GPT
from cllm.sampling.choice import Choice
from cllm.sampling.decoder import Decoder, Rereader, checked_tokens, decoder_for


def generate(model: GPT, tokens, max_new_tokens: int = 200, temperature: float = 1.0, top_k: int | None = None,
             top_p: float | None = None, seed: int = 0, num_threads: int | None = None) -> np.ndarray:
    """Continue a text.

    Each new token costs one row of forward: keys and values of earlier tokens are kept. When `max_seq_len` tokens are
    reached, the model reads the last half of them anew and goes on from there.

    Parameters
    ----------
    model : GPT
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


def stream(model: GPT, tokens, max_new_tokens: int = 200, temperature: float = 1.0, top_k: int | None = None,
           top_p: float | None = None, seed: int = 0, num_threads: int | None = None) -> Iterator[int]:
    """The same, token by token as they are made."""
    choice = Choice(temperature, top_k, top_p, seed)
    checked_size("generate(max_new_tokens=...)", max_new_tokens, 0)
    longest = model.config.max_seq_len
    tokens = np.asarray(tokens)
    seen = checked_tokens(model, tokens[-longest:] if tokens.ndim == 1 else tokens, 0).tolist()
    decoder = decoder_for(model, num_threads)
    fresh = seen
    for number in range(max_new_tokens):
        if decoder.position + len(fresh) > longest:
            decoder.reset()
            fresh = seen[-max(1, longest // 2):]
        token = choice(decoder.read(np.array(fresh))[-1], number)
        seen.append(token)
        fresh = [token]
        yield token


# The models stand above sampling in the order of imports, so the method is added from here.
GPT.generate = generate

__all__ = ["Choice", "Decoder", "Rereader", "decoder_for", "generate", "stream"]
