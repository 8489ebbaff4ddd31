"""How a model of other people's files takes and gives text: tokenizer, tokens that end a text, template of a chat."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from cllm.errors import ConfigError, DataError
from cllm.pretrained.chat import CHATML, render
from cllm.tokenizer import BPETokenizer
from cllm.weights.beside import TEMPLATES, files_beside

# Tokens that end a turn, where a tokenizer has them: a model that was tuned on chats need not name them as its end of text.
TURNS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class Speech:
    """What stands beside a model's weights.

    Parameters
    ----------
    where : str
    tokenizer : BPETokenizer
    stops : tuple of int
        Ids that end a text.
    template : str or None
        Of a chat, in Jinja's language.
    special : dict of str by str
        Special tokens by their names, such as ``bos_token``, which templates may use.
    """

    where: str
    tokenizer: BPETokenizer
    stops: tuple[int, ...] = ()
    template: str | None = field(default=None, repr=False)
    special: dict[str, str] = field(default_factory=dict)

    @classmethod
    def beside(cls, source: str | Path) -> "Speech":
        """That of a directory with tokenizer.json, or of a GGUF file.

        Raises
        ------
        DataError
            When there is no tokenizer.json.
        ConfigError
            When a library is missing.
        """
        files = dict(files_beside(Path(source)))
        if "tokenizer.json" not in files:
            raise DataError(f"tokenizer of {source}", "must be a tokenizer.json beside the model, or of a kind that is built",
                            f"{', '.join(files) or 'nothing'}", "Give one with --tokenizer, or convert the model's own.")
        tokenizer = BPETokenizer(files["tokenizer.json"].decode())
        about = {name: _json(source, name, files[name]) if name in files else {}
                 for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")}
        config = Path(source) / "config.json"
        if config.is_file():
            about["config.json"] = _json(source, "config.json", config.read_bytes())
        return cls(str(source), tokenizer, _stops(tokenizer, about), _template(files, about["tokenizer_config.json"]),
                   _special(about))

    @property
    def end(self) -> int | None:
        """Id that ends a text, such as a document that a model is trained on; None where the tokenizer has none."""
        named = self.vocabulary.get(self.special.get("eos_token"))
        return named if named is not None else next(iter(self.stops), None)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ids by the names of their tokens; empty for bytes."""
        return getattr(self.tokenizer, "vocabulary", {})

    @property
    def form(self) -> str | None:
        """The template of chats: the model's own, or ChatML where its tokens are there; None for neither."""
        chatml = "<|im_start|>" in self.vocabulary and "<|im_end|>" in self.vocabulary
        return CHATML if self.template is None and chatml else self.template

    def prompt(self, text: str) -> list[int]:
        """Ids of a text to go on with, with what the model's tokenizer puts before every text."""
        special = {} if getattr(self.tokenizer, "takes_bytes", False) else {"special": True}
        return self.tokenizer.encode(text, **special).tolist()

    def chat(self, messages: list[dict], now=None) -> list[int]:
        """Ids of a chat, and of the beginning of the answer.

        Parameters
        ----------
        messages : list of {"role": ..., "content": ...}
        now : datetime or None
            What a template that writes the date is told.

        Raises
        ------
        ConfigError
            When the model has no template, or jinja2 is missing.
        DataError
            When the template refuses the messages.
        """
        return self.tokenizer.encode(self.render(messages, now=now)).tolist()

    def render(self, messages: list[dict], answer: bool = True, now=None) -> str:
        """A chat as text; parameters and errors are those of `chat`, and `answer` says whether an answer begins after it."""
        if self.form is None:
            raise ConfigError(f"chat with {self.where}", "must be a model with a chat template, or ChatML's tokens",
                              "one without", "Give the text with --prompt alone.")
        return render(self.form, messages, self.special, self.where, answer, now)


def _json(source, name: str, contents: bytes) -> dict:
    try:
        found = json.loads(contents)
    except ValueError as error:
        raise DataError(f"{source}, {name}", "must be JSON", str(error), "Download it again.") from error
    return found if isinstance(found, dict) else {}


def _stops(tokenizer: BPETokenizer, about: dict) -> tuple[int, ...]:
    """Ids by which generation settings or the config end a text, and what ends a turn."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        given = about.get(name, {}).get("eos_token_id")
        if given is not None:
            found += given if isinstance(given, list) else [given]
            break
    names = [_text(about["tokenizer_config.json"].get("eos_token")), *TURNS]
    found += [tokenizer.vocabulary[name] for name in names if name in tokenizer.vocabulary]
    return tuple(dict.fromkeys(int(number) for number in found))


def _template(files: dict, config: dict) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    given = config.get("chat_template")
    if isinstance(given, list):  # several by name
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = named.get("default")
    if given is None and f"{TEMPLATES}/default.jinja" in files:
        return files[f"{TEMPLATES}/default.jinja"].decode()
    return given if isinstance(given, str) else None


def _special(about: dict) -> dict[str, str]:
    found = {**about["special_tokens_map.json"], **about["tokenizer_config.json"]}
    return {name: text for name in SPECIAL for text in [_text(found.get(name))] if text is not None}


def _text(token) -> str | None:
    """A token as it is written there: a text, or an object with one."""
    return token.get("content") if isinstance(token, dict) else token
