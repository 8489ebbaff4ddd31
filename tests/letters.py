"""A tokenizer that people can read: one token a character, but for some words that are one token."""
import re

import numpy as np

from cllm.pretrained import Speech


class Letters:
    """Words of `words` are tokens, longest first; `first` stands before every text that is encoded with special tokens."""

    def __init__(self, *words, first=None, name="letters"):
        self.first, self.name = first, name
        names = [*sorted(words, key=len, reverse=True), *map(chr, range(32, 127)), "\n"]
        self.vocabulary = {name: number for number, name in enumerate(names)}
        self.vocab_size, self.names = len(names), names
        self._token = re.compile("|".join(map(re.escape, names)))

    def encode(self, text, special=False):
        before = [self.vocabulary[self.first]] if special and self.first else []
        return np.array(before + [self.vocabulary[name] for name in self._token.findall(text)], np.int32)

    def decode(self, ids):
        return "".join(self.names[i] for i in ids)


START, END, TEXT_END, BEGIN = "<|im_start|>", "<|im_end|>", "<|end|>", "<s>"


def speech(*words, template=None, first=None, chat=True, ends=TEXT_END):
    tokenizer = Letters(*words, *([START, END] if chat else []), *([ends] if ends else []), *([first] if first else []),
                        first=first)
    return Speech("letters", tokenizer, tuple(tokenizer.vocabulary[e] for e in ([ends] if ends else [])), template,
                  {"eos_token": ends} if ends else {})
