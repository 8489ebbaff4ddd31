"""From text to the batches of a step: files, tokens on disk, windows."""

from cllm.corpus.text import EMBEDDED, RUN_MARK, embedded_text, read_text, text_files, text_pieces
from cllm.corpus.tokenfile import TokenFile, encoded, open_tokens, text_fingerprint, tokens_sha256, write_tokens
from cllm.corpus.windows import Windows, batch, even_starts, gather, split

__all__ = ["EMBEDDED", "RUN_MARK", "TokenFile", "Windows", "batch", "embedded_text", "encoded", "even_starts", "gather",
           "open_tokens", "read_text", "split", "text_files", "text_fingerprint", "text_pieces", "tokens_sha256",
           "write_tokens"]
