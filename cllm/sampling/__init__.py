"""Text from a model: `generate`, also as ``model.generate``; `stream_text` where a tokenizer is at hand."""

from cllm.models.gpt import GPT
from cllm.sampling.choice import Choice
from cllm.sampling.decoder import Decoder, Rereader, decoder_for
from cllm.sampling.generation import generate, stream
from cllm.sampling.text import stream_text

# The models stand above sampling in the order of imports, so the method is added from here.
GPT.generate = generate

__all__ = ["Choice", "Decoder", "Rereader", "decoder_for", "generate", "stream", "stream_text"]
