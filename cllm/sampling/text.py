"""Text that a model goes on with, through its tokenizer."""

from collections.abc import Iterator

import numpy as np

from cllm.models.model import Model
from cllm.sampling.generation import stream

UNFINISHED = "\ufffd"  # how a character shows whose bytes are not all there yet


def stream_text(model: Model, tokenizer, prompt, max_new_tokens: int, stop=(),
                **choice) -> Iterator[tuple[int, str]]:
    """Each new token, and the text that it completes: all pieces together are the text.

    A vocabulary larger than the tokenizer's is as good as one of its size: ids without text are never drawn.

    Parameters
    ----------
    model : Model
    tokenizer : ByteTokenizer, BPETokenizer
    prompt : str, bytes, or ids of one
        Empty is a line break: a model goes on from something.
    max_new_tokens : int
    stop : collection of int
        Ids that end the text; their own text is no part of it.
    choice : as of `generate`

    Raises
    ------
    ConfigError, DataError, TokenError, NonFiniteError
    """
    tokens = tokenizer.encode(prompt or "\n") if isinstance(prompt, (str, bytes)) else prompt
    among = tokenizer.ids[tokenizer.ids < model.program.vocabulary]
    made: list[int] = []
    shown = ""
    for number, token in enumerate(stream(model, tokens, max_new_tokens, among=among, stop=stop, **choice), 1):
        ends = token in stop
        made += [] if ends else [token]
        text = tokenizer.decode(np.array(made, np.int64))
        done = text if ends or number == max_new_tokens else text.rstrip(UNFINISHED)
        yield token, done[len(shown):]
        shown = done
