"""Text that a model goes on with, through its tokenizer."""

from collections.abc import Iterator

import numpy as np

from cllm.models.model import Model
from cllm.sampling.generation import stream

UNFINISHED = "\ufffd"  # how a character shows whose bytes are not all there yet


def stream_text(model: Model, tokenizer, prompt: str | bytes, max_new_tokens: int, **choice) -> Iterator[tuple[int, str]]:
    """Each new token, and the text that it completes: all pieces together are the text.

    A vocabulary larger than the tokenizer's is as good as one of its size: ids without text are never drawn.

    Parameters
    ----------
    model : Model
    tokenizer : ByteTokenizer, BPETokenizer
    prompt : str or bytes
        Empty is a line break: a model goes on from something.
    max_new_tokens : int
    choice : as of `generate`

    Raises
    ------
    ConfigError, DataError, TokenError, NonFiniteError
    """
    tokens = tokenizer.encode(prompt or "\n")
    among = tokenizer.ids[tokenizer.ids < model.program.vocabulary]
    made: list[int] = []
    shown = ""
    for token in stream(model, tokens, max_new_tokens, among=among, **choice):
        made.append(token)
        text = tokenizer.decode(np.array(made))
        done = text if len(made) == max_new_tokens else text.rstrip(UNFINISHED)
        yield token, done[len(shown):]
        shown = done
