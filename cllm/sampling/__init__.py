"""Text from a model: `generate`; `stream_text` where a tokenizer is at hand."""

from cllm.sampling.choice import Choice
from cllm.sampling.decoder import Decoder, Rereader, decoder_for
from cllm.sampling.generation import generate, stream
from cllm.sampling.text import stream_text

__all__ = ["Choice", "Decoder", "Rereader", "decoder_for", "generate", "stream", "stream_text"]
