"""What is trained on: completions and answers with what ends them, and nothing before."""
import numpy as np
import pytest
from letters import BEGIN, END, START, TEXT_END, speech

from cllm.finetuning.encoding import Encoder
from cllm.finetuning.examples import Example

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
MORE = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "No."}]


def seen(spoken, example, turns="all"):
    """All that is read, and what is trained on, as texts."""
    encoded = Encoder(spoken, turns)(example)
    decode = spoken.tokenizer.decode
    trained = encoded.targets != -1
    assert (encoded.targets[:-1] == np.where(trained[:-1], encoded.tokens[1:], -1)).all() and trained[-1]
    return decode([*encoded.tokens, encoded.targets[-1]]), [decode([t]) for t in encoded.targets[trained]]


def chat(*messages, asked=0):
    return Example("here, line 1", messages=messages, asked=asked)


def test_a_text_is_trained_on_whole_with_its_end():
    assert seen(speech(), Example("x", completion="abc")) == ("abc" + TEXT_END, ["b", "c", TEXT_END])
    assert seen(speech(first=BEGIN), Example("x", completion="abc")) == (BEGIN + "abc" + TEXT_END, ["a", "b", "c", TEXT_END])


def test_an_end_that_is_there_is_not_put_twice_and_none_is_put_where_there_is_none():
    assert seen(speech(), Example("x", completion="ab" + TEXT_END))[0] == "ab" + TEXT_END
    assert seen(speech(ends=None), Example("x", completion="abc")) == ("abc", ["b", "c"])


def test_a_prompt_is_read_and_its_completion_trained_on():
    example = Example("x", "1+1=", "2")
    assert seen(speech(first=BEGIN), example) == (BEGIN + "1+1=2" + TEXT_END, ["2", TEXT_END])


def test_a_token_over_the_border_of_a_prompt_is_taken_apart():
    """As sampling meets it: the prompt's tokens are those of the prompt alone."""
    assert seen(speech("=2"), Example("x", "1+1=", "2")) == ("1+1=2" + TEXT_END, ["2", TEXT_END])


def test_an_answer_is_trained_on_with_the_end_of_its_turn():
    text, trained = seen(speech(), chat(USER, ANSWER))
    assert text == f"{START}user\nHi{END}\n{START}assistant\nHo{END}\n" and trained == ["H", "o", END, "\n"]


@pytest.mark.parametrize("turns, expected", [("all", ["H", "o", END, "\n", "N", "o", ".", END, "\n"]),
                                             ("last", ["N", "o", ".", END, "\n"])])
def test_every_answer_or_the_last(turns, expected):
    assert seen(speech(), chat(USER, ANSWER, *MORE), turns)[1] == expected


def test_messages_of_a_prompt_are_not_trained_on():
    assert seen(speech(), chat(USER, ANSWER, *MORE, asked=3))[1] == ["N", "o", ".", END, "\n"]


def test_what_follows_the_last_answer_is_left_out():
    assert seen(speech(), chat(USER, ANSWER, MORE[0])) == seen(speech(), chat(USER, ANSWER))


def test_a_token_over_the_border_of_an_answer_is_taken_apart():
    text, trained = seen(speech("\nHo"), chat(USER, ANSWER))
    assert text.endswith(f"assistant\nHo{END}\n") and trained == ["H", "o", END, "\n"]


@pytest.mark.parametrize("messages, reason", [((ANSWER, USER, ANSWER), "an answer before anything was asked")])
def test_chats_that_cannot_be_cut_are_refused(messages, reason):
    with pytest.raises(ValueError, match=reason):
        seen(speech(), chat(*messages))


def test_a_completion_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="without an answer"):
        seen(speech(), chat(USER, ANSWER, USER, asked=2))


@pytest.fixture
def jinja():
    return pytest.importorskip("jinja2", minversion="3.1.6", reason="needs the extra hf")


THINKING = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_an_empty_thought_that_the_template_puts_there_is_the_prompts(jinja):
    text, trained = seen(speech(template=THINKING), chat(USER, ANSWER))
    assert "<think>\n\n</think>\n\nHo" in text and trained == ["H", "o", END, "\n"]


def test_a_template_that_writes_earlier_messages_in_another_way_is_refused_unless_the_last_is_asked_for(jinja):
    with pytest.raises(ValueError, match="at message 2; turns='last' may do"):
        seen(speech(template=THINKING), chat(USER, ANSWER, *MORE))
    assert seen(speech(template=THINKING), chat(USER, ANSWER, *MORE), "last")[1] == ["N", "o", ".", END, "\n"]


def test_the_models_own_template_is_taken(jinja):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}" \
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    text, trained = seen(speech(template=template, chat=False), chat(USER, ANSWER))
    assert text == "[user]Hi<|end|>[assistant]Ho<|end|>" and trained == ["H", "o", "<|end|>"]
