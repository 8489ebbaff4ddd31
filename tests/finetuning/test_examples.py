"""JSON lines to examples: every form, and lines that are none, by number and reason."""
import json

import pytest

import cllm
from cllm.finetuning.examples import example_of, read_examples

ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}


def written(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_every_form(tmp_path):
    path = written(tmp_path / "a.jsonl", {"text": "all", "more": 1}, {"prompt": "p", "completion": "c"}, b"  ",
                   {"instruction": "do", "output": "done"}, {"instruction": "do", "input": "this", "output": "done"},
                   {"messages": [ASKED, ANSWERED]}, {"prompt": [ASKED], "completion": [ANSWERED]})
    text, pair, short, long, chat, asked = read_examples(path, chats=False)
    assert (text.prompt, text.completion, text.where) == ("", "all", f"{path}, line 1")
    assert (pair.prompt, pair.completion) == ("p", "c")
    assert short.where.endswith("line 4") and short.completion == "done"
    assert short.prompt.endswith("### Instruction:\ndo\n\n### Response:\n")
    assert "paired with an input" in long.prompt and "### Input:\nthis\n\n### Response:\n" in long.prompt
    assert chat.messages == asked.messages == (ASKED, ANSWERED) and (chat.asked, asked.asked) == (0, 1)
    as_chat = read_examples(path, chats=True)[3]
    assert as_chat.messages == ({"role": "user", "content": "do\n\nthis"}, {"role": "assistant", "content": "done"})


@pytest.mark.parametrize("line, reason", [
    (b"{", "no JSON"), (b"[1]", "list, no object"), (b'{"text": "\xff"}', "not UTF-8"), (b"[" * 9999, "nested too deeply"),
    ({}, "the keys none"), ({"prompt": "p"}, "the keys prompt"), ({"text": 3}, "text of int"), ({"text": ""}, "an empty text"),
    ({"prompt": "p", "completion": ""}, "an empty completion"),
    ({"prompt": "p", "completion": [ANSWERED]}, "completion of list"),
    ({"instruction": "i", "output": None}, "output of NoneType"), ({"text": "\ud800"}, "half of a surrogate pair"),
    ({"messages": {}}, "no list of objects"), ({"messages": ["a"]}, "no list of objects"),
    ({"messages": [{"role": "user"}]}, "message 1 without a role and a content"),
    ({"messages": [ASKED, {**ANSWERED, "content": [{"type": "text"}]}]}, "message 2 without a role and a content"),
    ({"messages": [ASKED]}, "none is the assistant's")])
def test_a_line_that_is_no_example_is_named_with_the_reason(tmp_path, line, reason):
    path = written(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(cllm.DataError, match=f"line 2: must be an example.*{reason}"):
        read_examples(path, chats=False)


def test_the_other_lines_are_named_by_number(tmp_path):
    path = written(tmp_path / "a.jsonl", *[{"text": "fine"}, {"no": 1}] * 12)
    with pytest.raises(cllm.DataError, match="line 2: .*; and lines 4, 6, 8, 10, 12, 14, 16, 18 and 3 more. Mend"):
        read_examples(path, chats=False)


def test_a_file_that_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(cllm.DataError, match="must be a file of JSON lines"):
        read_examples(tmp_path / "none.jsonl", chats=False)
    with pytest.raises(cllm.DataError, match="must have an example a line"):
        read_examples(written(tmp_path / "a.jsonl", b"", b" "), chats=False)


def test_what_more_than_one_form_fits_is_the_richest():
    assert example_of("x", {"text": "t", "messages": [ASKED, ANSWERED]}).messages
    assert example_of("x", {"text": "t", "prompt": "p", "completion": "c"}).prompt == "p"
