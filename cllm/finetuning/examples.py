"""Examples out of JSON lines: a text, a prompt and its completion, an instruction and its output, or messages.

What a line is, its keys say; keys beyond those mean nothing. A line that is none of these is named by its number.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from cllm.errors import DataError

MOST_LINES = 8  # named in an error
INTRODUCTION = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
WITH_INPUT = ", paired with an input that provides further context"


@dataclass(frozen=True, slots=True)
class Example:
    """One line.

    Parameters
    ----------
    where : str
        File and line.
    prompt, completion : str
        The second is trained on; a text is a completion of nothing.
    messages : tuple of {"role": str, "content": str}
        In their place, for a chat.
    asked : int
        Messages that come before what may be trained on.
    """

    where: str
    prompt: str = ""
    completion: str = ""
    messages: tuple[dict[str, str], ...] = ()
    asked: int = 0


def read_examples(path: str | PathLike, chats: bool) -> list[Example]:
    """The examples of a file, an object of JSON a line; empty lines are passed over.

    Parameters
    ----------
    path : path
    chats : bool
        Whether instructions become chats; else they get the headings of Alpaca (Taori et al. 2023).

    Raises
    ------
    DataError
        When it cannot be read, has no example, or has lines that are none: their numbers are named.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(str(path), "must be a file of JSON lines", error.strerror or str(error), "Check the path.") from error
    found, wrong = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                found.append(example_of(where, _object(line), chats))
            except ValueError as error:
                wrong.append((number, str(error)))
    if wrong:
        raise refused(str(path), wrong)
    if not found:
        raise DataError(str(path), "must have an example a line", "none", "Write one JSON object a line.")
    return found


def refused(path: str, wrong: Sequence[tuple[int, str]]) -> DataError:
    """What lines that are no examples raise: the first with its reason, others by number."""
    (first, reason), rest = wrong[0], [str(number) for number, _ in wrong[1:]]
    more = f"; and lines {', '.join(rest[:MOST_LINES])}" if rest else ""
    more += f" and {len(rest) - MOST_LINES} more" if len(rest) > MOST_LINES else ""
    return DataError(f"{path}, line {first}", 'must be an example: {"text"}, {"prompt", "completion"}, {"messages"}, or '
                     '{"instruction", "output"}', reason + more, "Mend or remove these lines.")


def example_of(where: str, line: dict, chats: bool = False) -> Example:
    """The example that a line's object is; `ValueError` says why it is none."""
    if "messages" in line:
        return Example(where, messages=_messages(line["messages"]))
    if "prompt" in line and "completion" in line:
        prompt, completion = line["prompt"], line["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return Example(where, messages=_messages(prompt + completion), asked=len(prompt))
        return Example(where, _text("prompt", prompt), _text("completion", completion, filled=True))
    if "instruction" in line and "output" in line:
        instruction, output = _text("instruction", line["instruction"]), _text("output", line["output"], filled=True)
        given = _text("input", line.get("input") or "")
        if chats:
            asked = f"{instruction}\n\n{given}" if given else instruction
            return Example(where, messages=({"role": "user", "content": asked}, {"role": "assistant", "content": output}))
        heading = INTRODUCTION.format(WITH_INPUT if given else "") + f"### Instruction:\n{instruction}\n\n"
        return Example(where, heading + (f"### Input:\n{given}\n\n" if given else "") + "### Response:\n", output)
    if "text" in line:
        return Example(where, completion=_text("text", line["text"], filled=True))
    raise ValueError(f"the keys {', '.join(line) or 'none'}")


def _object(line: bytes) -> dict:
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("bytes that are not UTF-8") from error
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__}, no object")
    return found


def _text(key: str, value, filled: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} of {type(value).__name__}, no text")
    if filled and not value:
        raise ValueError(f"an empty {key}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key} with half of a surrogate pair at character {error.start}") from error
    return value


def _messages(given) -> tuple[dict[str, str], ...]:
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise ValueError("messages that are no list of objects")
    found = []
    for number, message in enumerate(given, 1):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"message {number} without a role and a content that are texts")
        found.append({"role": role, "content": _text(f"content of message {number}", content)})
    if not any(message["role"] == "assistant" for message in found):
        raise ValueError("messages of which none is the assistant's")
    return tuple(found)
