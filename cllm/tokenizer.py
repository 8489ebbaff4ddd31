"""Text to tokens and back."""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cllm.errors import DataError, DtypeError, TokenError


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """Every byte is a token: nothing to learn, nothing to store, any file can be read."""

    vocab_size: ClassVar[int] = 256

    def encode(self, text: str | bytes) -> np.ndarray:
        """The bytes of a text, those of its UTF-8 form if it is a str: int32 array of shape (n,)."""
        if isinstance(text, str):
            try:
                text = text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError("encode(text)", "must be text that UTF-8 can hold",
                                f"a surrogate at character {error.start}",
                                "Read the file as bytes and encode those.") from error
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode_bytes(self, tokens) -> bytes:
        """The bytes that the tokens are: exact inverse of `encode`.

        Parameters
        ----------
        tokens : integers of shape (n,)
            Each in 0 .. 255.
        """
        tokens = np.asarray(tokens)
        if tokens.size == 0:
            return b""
        if tokens.dtype.kind not in "iu":
            raise DtypeError("decode(tokens)", "must be integers", str(tokens.dtype), "Pass token ids.")
        outside = (tokens < 0) | (tokens > 255)
        if outside.any():
            raise TokenError("decode(tokens)", "must be in 0 .. 255", str(tokens[outside][0]),
                             "Decode with the tokenizer whose vocabulary the model was trained on.")
        return tokens.astype(np.uint8).tobytes()

    def decode(self, tokens) -> str:
        """The tokens as text; bytes that are not UTF-8 show as U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")
