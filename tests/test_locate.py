"""Classes of users by module and file: one name wherever they are met, found again, refused where nobody could."""
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

import cllm
from cllm.locate import Place, find, is_loading, load_module, module_of, place_of

SOURCE = '''
from dataclasses import dataclass
from typing import ClassVar

import cllm

print("loaded")
if __name__ == "__main__":
    raise SystemExit("this is not for those who load")


@dataclass(frozen=True)
class Mine:
    kind: "ClassVar[str]" = "a text that dataclasses look up in the module"
    size: int = 1

    class Inner:
        pass


def above():
    pass
'''
COMPARE = '''
try:
    cllm.compare(cllm.ModelConfig.preset("tiny"), ["cache"], 1, 8)
except Exception:
    pass


class Below:
    pass
'''


@pytest.fixture
def file(tmp_path):
    """A file that compares without a guard; what is loaded is forgotten after the test."""
    before = dict(sys.modules)
    (tmp_path / "thing.py").write_text(SOURCE + COMPARE)
    yield tmp_path / "thing.py"
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def as_script(monkeypatch, source, file=None, spec=None):
    """A module ``__main__`` in which a source was run."""
    main = ModuleType("__main__")
    main.__spec__ = spec
    if file is not None:
        main.__file__ = str(file)
    exec(source, main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def test_a_file_is_loaded_up_to_its_comparison_and_once(file, capsys):
    module = load_module("thing", str(file))
    assert module.Mine().size == 1 and not hasattr(module, "Below") and not is_loading()
    assert load_module("thing", str(file)) is module and capsys.readouterr().out == "loaded\n"
    assert find(Place("thing", str(file), "Mine.Inner")) is module.Mine.Inner
    with pytest.raises(cllm.ConfigError, match="thing.py: must define Below at its top.*Move it above the comparison"):
        find(Place("thing", str(file), "Below"))


def test_a_file_that_fails_is_no_module_and_can_be_loaded_again(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_module("broken", str(tmp_path / "broken.py"))
    assert "broken" not in sys.modules and not is_loading()


def test_a_script_and_its_file_give_one_name(file, monkeypatch):
    main = as_script(monkeypatch, "class Mine: pass\ndef work(): pass", file)
    assert module_of(main.Mine) == module_of(main.work) == "thing" and module_of(dict) == "builtins"
    assert place_of(main.Mine) == Place("thing", str(file), "Mine")
    assert find(place_of(main.Mine)) is not main.Mine  # the file's, under another module's name
    as_module = as_script(monkeypatch, "class Mine: pass", file, ModuleSpec("package.thing", None))  # python -m
    assert module_of(as_module.Mine) == "package.thing"


def test_a_plan_of_a_script_fits_the_model_of_its_file(file, monkeypatch):
    source = "import own_model\nclass Scale(own_model.Scale): pass"
    main = as_script(monkeypatch, source, file)
    file.write_text(source)
    there = load_module("thing", str(file))
    assert cllm.program.program.plain(main.Scale(C=3)) == cllm.program.program.plain(there.Scale(C=3)) == [
        "thing.Scale", {"C": 3}]


@pytest.mark.parametrize("got, make", [
    ("made inside a function", "def make():\n    class Mine: pass\n    return Mine\nmade = make()"),
    ("made inside a function", "class Mine: pass\nmade = Mine\nclass Mine: pass"),
    ("made inside a function", "made = lambda: 1"),
    ("typed into a notebook or an interpreter", "class Mine: pass\nmade = Mine")])
def test_what_nobody_could_find_is_refused(got, make, monkeypatch):
    with pytest.raises(cllm.ConfigError, match=f"must stand at the top of a file or module.*got one that was {got}"):
        place_of(as_script(monkeypatch, make).made)


def test_packages_are_imported_with_what_they_need(tmp_path, monkeypatch):
    folder = tmp_path / "package_of_mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "parts.py").write_text("size = 3")
    (folder / "model.py").write_text("from .parts import size\nclass Mine: pass")
    monkeypatch.syspath_prepend(tmp_path)
    found = find(Place("package_of_mine.model", str(folder / "model.py"), "Mine"))
    assert sys.modules["package_of_mine"].model.size == 3 and found.__module__ == "package_of_mine.model"
    for name in ("package_of_mine", "package_of_mine.parts", "package_of_mine.model"):
        del sys.modules[name]


def test_a_package_that_compares_is_not_run_on(tmp_path, monkeypatch):
    folder = tmp_path / "comparing"
    folder.mkdir()
    (folder / "__init__.py").write_text("import cllm" + COMPARE + "raise AssertionError('run on')")
    (folder / "model.py").write_text("class Mine: pass")
    monkeypatch.syspath_prepend(tmp_path)
    assert find(Place("comparing.model", str(folder / "model.py"), "Mine")).__name__ == "Mine"
    del sys.modules["comparing.model"]


def test_what_is_not_there_or_has_anothers_name_is_refused(tmp_path):
    for name, path in (("nowhere", tmp_path / "nowhere.py"), ("no.such.module", None), ("nosuchmodule", None)):
        with pytest.raises(cllm.ConfigError, match="must be a Python file or a module that can be imported"):
            load_module(name, path and str(path))
    (tmp_path / "json.py").write_text("")
    with pytest.raises(cllm.ConfigError, match="must have a name of its own.*Rename the file"):
        load_module("json", str(tmp_path / "json.py"))
