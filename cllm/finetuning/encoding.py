"""From an example to tokens, and which of them are trained on.

What is trained on is what follows a prefix: of a chat, for each answer, the rendering of all before it with the beginning of
an answer is the prefix of the rendering with it, in text and, as a rule, in tokens. Where a token spans the border, the parts
are made tokens of apart. So the token that ends a turn is trained on, and the template's words before an answer are not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cllm.finetuning.examples import Example
from cllm.pretrained.speech import Speech

# What templates of models that can think put before an answer of which the thought is not given: the prompt's, as sampling
# without a thought puts it there.
EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Inputs of an example, and what is to follow each.

    Parameters
    ----------
    where : str
    tokens : int32 array of shape (n,)
        Up to the one before the last that is trained on.
    targets : int32 array of shape (n,)
        The token after each, or -1 where that is not trained on.
    """

    where: str
    tokens: np.ndarray
    targets: np.ndarray

    def cut(self, most: int) -> "Encoded":
        """Its first inputs."""
        return self if len(self.tokens) <= most else Encoded(self.where, self.tokens[:most], self.targets[:most])

    @property
    def count(self) -> int:
        """Targets that are trained on."""
        return int(np.count_nonzero(self.targets != -1))


class Encoder:
    """Makes tokens of examples.

    Parameters
    ----------
    speech : Speech
    turns : {"all", "last"}
        The answers of a chat that are trained on.
    """

    def __init__(self, speech: Speech, turns: str = "all"):
        self._speech, self._turns = speech, turns

    def __call__(self, example: Example) -> Encoded:
        """The example in tokens.

        Raises
        ------
        ValueError
            Says why a chat cannot be cut into what is trained on and what is not.
        ConfigError, DataError
            When there is no template, or it refuses the messages.
        """
        parts = self._chat(example) if example.messages else self._completion(example)
        ids = np.array([i for part, _ in parts for i in part], np.int32)
        trained = np.array([is_trained for part, is_trained in parts for _ in part], bool)
        length = int(np.flatnonzero(trained).max(initial=0))  # what stands after the last target predicts nothing
        targets = np.where(trained[1:length + 1], ids[1:length + 1], -1).astype(np.int32)
        return Encoded(example.where, ids[:length].copy(), targets)

    def _completion(self, example: Example) -> list[tuple[list[int], bool]]:
        speech = self._speech
        prefix, whole = ([i for i in self._unended(speech.prompt(text))] for text in (
            example.prompt, example.prompt + example.completion))
        answer = whole[len(prefix):]
        if whole[:len(prefix)] != prefix:
            answer = speech.tokenizer.encode(example.completion).tolist()
        if speech.end is not None and answer[-1:] != [speech.end]:
            answer = [*answer, speech.end]
        return [(prefix, False), (answer, True)]

    def _unended(self, ids: list[int]) -> list[int]:
        """Without an end that the tokenizer puts after every text."""
        return ids[:-1] if len(ids) > 1 and ids[-1] == self._speech.end else ids

    def _chat(self, example: Example) -> list[tuple[list[int], bool]]:
        render, messages = self._speech.render, list(example.messages)
        answers = [k for k, m in enumerate(messages) if m["role"] == "assistant" and k >= example.asked]
        if not answers:
            raise ValueError("a completion without an answer of the assistant's")
        answers = answers[-1:] if self._turns == "last" else answers
        if answers[0] == 0:
            raise ValueError("an answer before anything was asked")
        whole = render(messages[:answers[-1] + 1], answer=False)
        borders = [0]
        for k in answers:
            before, after = render(messages[:k]), render(messages[:k + 1], answer=False)
            if not whole.startswith(after) or not after.startswith(before):
                raise ValueError(f"a chat template (of {self._speech.where}) that writes earlier messages in another way when "
                                 f"later ones follow, at message {k + 1}; turns='last' may do")
            thought = EMPTY_THOUGHT.match(after, len(before))
            given = EMPTY_THOUGHT.match(messages[k]["content"])
            borders += [thought.end() if thought and not given else len(before), len(after)]
        texts = [whole[i:j] for i, j in zip(borders, borders[1:], strict=False)]
        return [(ids, number % 2 == 1) for number, ids in enumerate(self._tokens(whole, texts))]

    def _tokens(self, whole: str, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each of the texts that a text is made of: its own, or where one spans a border, theirs apart."""
        encode = self._speech.tokenizer.encode
        ids, found, text = encode(whole).tolist(), [], ""
        for one in texts:
            text += one
            until = encode(text).tolist()
            begun = sum(map(len, found))
            if ids[:len(until)] != until or len(until) < begun:
                return [encode(one).tolist() for one in texts]
            found.append(until[begun:])
        return found
