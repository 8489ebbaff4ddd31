"""Tokenizer, ends of texts and chat templates of a directory; a template is somebody else's program in a sandbox."""
import json
from datetime import datetime

import pytest

import cllm
from cllm.pretrained import Speech
from cllm.pretrained.chat import CHATML, render

MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]


def test_chatml_needs_no_library():
    assert render(CHATML, MESSAGES, {}, "x") == ("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                                                 "<|im_start|>assistant\n")
    assert render(CHATML, MESSAGES[1:], {}, "x", answer=False) == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.fixture
def jinja():
    return pytest.importorskip("jinja2", minversion="3.1.6", reason="needs the extra hf")


def test_a_template_is_rendered_as_transformers_does(jinja):
    template = """{{ bos_token }}
    {%- for message in messages %}
        {% if message.role == 'system' %}{% continue %}{% endif %}
        {% generation %}[{{ message.content | tojson }}]{% endgeneration %}
    {% endfor %}
    {% if add_generation_prompt %}>{{ strftime_now('%Y') }}{% endif %}"""
    text = render(template, [*MESSAGES, {"role": "user", "content": "é<"}], {"bos_token": "<s>"}, "x", now=datetime(2026, 5, 1))
    assert "".join(text.split()) == '<s>["Hi"]["é<"]>2026'


@pytest.mark.parametrize("template, match", [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"), ("{% if %}", "TemplateSyntaxError"),
    ("{{ messages.__class__.__mro__ }}", "SecurityError"), ("{{ ''.__class__.__base__.__subclasses__() }}", "SecurityError"),
    ("{{ messages.append(1) }}", "SecurityError"), ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
    ("{{ strftime_now('%Y') }}", "strftime_now")])
def test_what_a_template_may_not_or_cannot_is_an_error(jinja, template, match):
    with pytest.raises(cllm.DataError, match=match):
        render(template, MESSAGES, {}, "x")


@pytest.fixture
def directory(tmp_path):
    """A directory with a tokenizer of letters; files are given by name."""
    library = pytest.importorskip("tokenizers", reason="needs the extra hf")

    def make(**files):
        vocabulary = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyzĠĊABCDEFGHIJKLMNOPQRSTUVWXYZ.")}
        made = library.Tokenizer(library.models.BPE(vocabulary, []))
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = library.decoders.ByteLevel()
        made.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"][:files.pop("special", 5)])
        made.post_processor = library.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", len(vocabulary))])
        made.save(str(tmp_path / "tokenizer.json"))
        for name, contents in files.items():
            path = tmp_path / name.replace("__", ".")
            path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
        return tmp_path
    return make


def test_stops_are_a_list_and_what_ends_a_turn(directory):
    first = len("abcdefghijklmnopqrstuvwxyzĠĊABCDEFGHIJKLMNOPQRSTUVWXYZ.")
    speech = Speech.beside(directory(generation_config__json={"eos_token_id": [first + 1, first + 4]},
                                     config__json={"eos_token_id": 0},
                                     tokenizer_config__json={"eos_token": {"content": "</s>"}}))
    assert speech.stops == (first + 1, first + 4, first + 3) and speech.special == {"eos_token": "</s>"}
    assert speech.prompt("ab") == [first, 0, 1] and speech.tokenizer.encode("ab").tolist() == [0, 1]
    (directory() / "generation_config.json").unlink()
    assert Speech.beside(directory()).stops[0] == 0  # config.json's, where there is no other


def test_where_templates_stand(directory, jinja):
    ids = Speech.beside(directory()).tokenizer.encode
    chatml = Speech.beside(directory()).chat(MESSAGES)
    assert chatml == ids(render(CHATML, MESSAGES, {}, "x")).tolist()
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[1].content }}a"}]
    assert Speech.beside(directory(tokenizer_config__json={"chat_template": named})).chat(MESSAGES) == ids("Hia").tolist()
    path = directory(chat_template__jinja="{{ messages[1].content }}b")
    assert Speech.beside(path).chat(MESSAGES) == ids("Hib").tolist()
    (path / "chat_template.jinja").unlink()
    (path / "tokenizer_config.json").unlink()
    with pytest.raises(cllm.ConfigError, match="must be a model with a chat template"):
        Speech.beside(directory(special=2)).chat(MESSAGES)


def test_a_directory_without_a_tokenizer_or_with_broken_files_says_so(directory, tmp_path):
    with pytest.raises(cllm.DataError, match="tokenizer.json"):
        Speech.beside(tmp_path)
    with pytest.raises(cllm.DataError, match="generation_config.json: must be JSON"):
        Speech.beside(directory(generation_config__json="{"))
