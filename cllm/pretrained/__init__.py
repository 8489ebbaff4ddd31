"""Models in other people's files: load them, save them so that the ecosystem reads them back, their tokenizers and chats."""

from cllm.models.gguf import from_gguf
from cllm.models.pretrained import from_pretrained, read_architecture
from cllm.models.saving import Saved, Source, file_names
from cllm.pretrained.speech import Speech
from cllm.tokenizer import load_tokenizer

__all__ = ["Saved", "Source", "Speech", "file_names", "from_gguf", "from_pretrained", "load_tokenizer", "read_architecture"]
