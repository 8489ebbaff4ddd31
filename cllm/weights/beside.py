"""What belongs to a model beside its weights: tokenizer, template, generation settings, licence, as files.

Of a directory they are copied as they are. A GGUF file keeps them as settings, of which the same files are made.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from cllm.errors import ConfigError
from cllm.weights.gguf import GGUF, read_gguf

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
         "LICENSE", "LICENSE.txt", "NOTICE", "README.md", "USE_POLICY.md")
TEMPLATES = "additional_chat_templates"

CONTROL, OWN = 3, 4  # kinds of tokens in GGUF: special ones, and ones that users defined
# How a text is parted before pairs are merged, by GGUF's names of it.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PARTED = {"gpt-2": BYTE_LEVEL,
          "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}}
SPECIAL = ("bos", "eos", "unknown", "padding")


def files_beside(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name and contents of each file that belongs to the model of a directory or a GGUF file.

    Raises
    ------
    OSError, CllmError
        When they cannot be read.
    """
    if source.is_file():
        yield from gguf_files(read_gguf(source)).items()
    elif source.is_dir():
        for name in FILES:
            if (source / name).is_file():
                yield name, (source / name).read_bytes()
        for path in sorted((source / TEMPLATES).glob("*")):
            if path.is_file():
                yield f"{TEMPLATES}/{path.name}", path.read_bytes()


def gguf_files(file: GGUF) -> dict[str, bytes]:
    """The files that stand beside the weights of such a model in a directory; a tokenizer that is not built is left out."""
    given = {key.removeprefix("tokenizer."): value for key, value in file.settings.items() if key.startswith("tokenizer.")}
    ids = {name: given[f"ggml.{name}_token_id"] for name in SPECIAL if f"ggml.{name}_token_id" in given}
    tokens = given.get("ggml.tokens", [])
    names = {name: tokens[number] for name, number in ids.items() if number < len(tokens)}
    words = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                        **{f"{words[name]}_token": token for name, token in names.items()}}
    if "chat_template" in given:
        tokenizer_config["chat_template"] = given["chat_template"]
    made = {"tokenizer_config.json": tokenizer_config,
            "generation_config.json": {f"{words[name]}_token_id": number for name, number in ids.items() if name != "unknown"}}
    if is_built(given):
        made["tokenizer.json"] = tokenizer_of(given)
    return {name: json.dumps(data, ensure_ascii=False, indent=None if name == "tokenizer.json" else 2).encode()
            for name, data in made.items()}


def is_built(given: dict) -> bool:
    """Whether a tokenizer can be made of settings without their "tokenizer."."""
    return given.get("ggml.model") == "gpt2" and given.get("ggml.pre") in PARTED and not given.get("ggml.add_bos_token", False)


def tokenizer_of(given: dict) -> dict:
    """tokenizer.json of such settings.

    Raises
    ------
    ConfigError
        When it is not built.
    """
    if not is_built(given):
        raise ConfigError("tokenizer of a GGUF file", f"must be of model gpt2, parted as {' or '.join(PARTED)}, without BOS",
                          f"{given.get('ggml.model')!r}, parted as {given.get('ggml.pre')!r}",
                          "Give the model's tokenizer.json with --tokenizer.")
    tokens, kinds = given["ggml.tokens"], given["ggml.token_type"]
    added = [{"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": kind == CONTROL} for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
             if kind in (CONTROL, OWN)]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {token: number for number, token in enumerate(tokens)},
             "merges": [merge.split(" ") for merge in given["ggml.merges"]]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": PARTED[given["ggml.pre"]], "post_processor": None, "decoder": BYTE_LEVEL, "model": model}
