"""From what is typed to an architecture: families, users' classes, settings as text."""
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

import own_model
import pytest

import cllm
from cllm.models.choosing import family_named, made
from cllm.models.crystalline import Crystalline
from cllm.models.settings import setting_of, settings_of

FILE = Path(own_model.__file__)


class Colour(Enum):
    RED = 1


@dataclass(frozen=True)
class Everything(cllm.Architecture):
    size: int
    rate: "float" = 0.5
    deep: bool = False
    word: str = "a"
    maybe: int | None = None
    either: int | str = 1
    kind: Literal["x", 2] = "x"
    colour: Colour = Colour.RED
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")
    words: tuple = ()
    table: dict = field(default_factory=dict)
    hidden: int = field(default=3, init=False)

    def wire(self, w):
        raise NotImplementedError


def test_families_by_name_file_and_module(monkeypatch):
    assert family_named("gpt") is cllm.ModelConfig and family_named("crystalline") is Crystalline
    assert family_named(f"{FILE}:Mine") is own_model.Mine and family_named("own_model:Mine") is own_model.Mine
    monkeypatch.chdir(FILE.parent)
    assert family_named("own_model.py:Pictures") is own_model.Pictures


def test_a_file_finds_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_of_mine.py").write_text("from own_model import Mine")
    (tmp_path / "mine_at_home.py").write_text("from neighbour_of_mine import Mine as Theirs\nclass Mine(Theirs): pass")
    assert issubclass(family_named(f"{tmp_path / 'mine_at_home.py'}:Mine"), own_model.Mine)
    for name in ("neighbour_of_mine", "mine_at_home"):
        del sys.modules[name]


@pytest.mark.parametrize("text, match", [
    ("gtp", "must be one of gpt, crystalline, .*FILE.py:Class, module:Class, or a directory .*; got 'gtp'"),
    (":Mine", "must be one of"),
    (f"{FILE}:Scale", "must name an architecture in .*: Mine, Pictures; got 'Scale'"),
    (f"{FILE}:None", "must name an architecture"), (f"{FILE}:Nothing", "Mine, Pictures; got 'Nothing'"),
    ("json:Mine", "it has none"), ("nowhere.py:Mine", "must be a Python file"), ("no.where:Mine", "must be a Python file")])
def test_what_is_no_family_is_refused(text, match):
    with pytest.raises(cllm.ConfigError, match=match):
        family_named(text)


@pytest.mark.parametrize("text, value", [
    ("size=4", 4), ("rate=1e-3", 1e-3), ("deep=true", True), ("deep=0", False), ("word=none", "none"), ("word=a=b", "a=b"),
    ("maybe=none", None), ("maybe=3", 3), ("either=7", 7), ("either=seven", "seven"), ("kind=2", 2), ("kind=x", "x"),
    ("colour=RED", Colour.RED), ("sizes=3+4", (3, 4)), ("sizes=", ()), ("pair=2+b", (2, "b")), ("words=a+b", ("a", "b"))])
def test_a_setting_is_read_by_the_type_of_its_field(text, value):
    (found,) = settings_of(Everything, [text]).values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["size=4.5", "size=", "size=none", "rate=fast", "deep=perhaps", "maybe=x", "kind=3",
                                  "colour=BLUE", "sizes=a", "pair=1", "table=a"])
def test_a_value_that_does_not_fit_is_refused(text):
    with pytest.raises(cllm.ConfigError, match=f"--set {text.partition('=')[0]}=...: must be a value of"):
        settings_of(Everything, [text])


@pytest.mark.parametrize("texts, match", [
    (["size"], "must be FIELD=VALUE"), (["size=1", "size=2"], "each field once; got it twice"),
    (["sise=1"], "must be a field of Everything; got 'sise'. It has size, rate"),
    (["hidden=1"], "must be a field of Everything")])
def test_a_setting_that_is_none_is_refused(texts, match):
    with pytest.raises(cllm.ConfigError, match=match):
        settings_of(Everything, texts)


def test_a_field_without_a_type_that_is_there_is_read_as_its_default():
    @dataclass(frozen=True)
    class Odd(cllm.Architecture):
        size: "NotThere" = 3  # noqa: F821

        def wire(self, w):
            raise NotImplementedError

    assert setting_of(Odd, "size", "4") == 4


def test_architectures_are_made_of_settings_and_presets():
    assert made(own_model.Mine, {"C": 16}) == own_model.Mine(C=16)
    assert made(Crystalline, {"n_layers": 1}, "tiny") == Crystalline.preset("tiny", n_layers=1)
    assert made(own_model.Mine, {}, seq_len=40).max_seq_len == 40 and made(own_model.Mine, {}, seq_len=4).max_seq_len == 16
    assert made(own_model.Mine, {"max_seq_len": 8}, seq_len=40).max_seq_len == 8
    assert made(own_model.Pictures, {}, seq_len=40) == own_model.Pictures()
    with pytest.raises(cllm.ConfigError, match="--preset: is for families that derive from ModelConfig; got Mine"):
        made(own_model.Mine, {}, "tiny")
    with pytest.raises(cllm.ConfigError, match="Everything: must be given its fields: size, .*'size'"):
        made(Everything, {})


def test_a_model_in_words():
    assert own_model.Pictures().describe() == "Pictures, pixels 12, C 6, classes 4"
    assert cllm.ModelConfig.preset("tiny", n_layers=1).describe() == "1 layer, C 64, H 4, F 256, V 256"
