"""Classes and functions of users by module and file: named the same wherever they are met, and found in another process.

What a script defines belongs to the module ``__main__`` while the script runs, and to another when its file is imported.
Here it belongs to the module that is named after the file, so that fingerprints, measurements and files agree on it.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cllm.errors import ConfigError


class ReachedComparison(BaseException):
    """Ends the loading of a file at a comparison that the file itself begins: what stands above it is defined.

    No error, and no `Exception`, so that a script that catches errors does not run on.
    """


@dataclass(frozen=True, slots=True)
class Place:
    """Where a class or function is defined: its module, the module's file (None: part of Python), its name there."""

    module: str
    file: str | None
    name: str


_under_way = 0  # files that are being loaded


def module_of(thing) -> str:
    """Name of the module of a class or function; for what the script at hand defines, of its file."""
    if thing.__module__ != "__main__":
        return thing.__module__
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec is not None else Path(file).stem if file else "__main__"


def place_of(thing) -> Place:
    """Where another process finds a class or function.

    Raises
    ------
    ConfigError
        When it finds it nowhere: it was made inside a function, or typed in.
    """
    where = f"{'class' if isinstance(thing, type) else 'function'} {thing.__qualname__}"
    must = "must stand at the top of a file or module, where another process finds it"
    module = sys.modules.get(thing.__module__)
    if "<" in thing.__qualname__ or _resolved(module, thing.__qualname__) is not thing:
        raise ConfigError(where, must, "one that was made inside a function, or replaced since",
                          "Move it out of the function, to the top of a file.")
    file = getattr(module, "__file__", None)
    if thing.__module__ == "__main__" and not (file and Path(file).is_file()):
        raise ConfigError(where, must, "one that was typed into a notebook or an interpreter",
                          "Put it into a file, mine.py, and import it: from mine import " + thing.__qualname__ + ".")
    return Place(module_of(thing), file and str(Path(file).absolute()), thing.__qualname__)


def find(place: Place):
    """The class or function that `place_of` described.

    Raises
    ------
    ConfigError
        When it is not there.
    """
    found = _resolved(load_module(place.module, place.file), place.name)
    if found is None:
        raise ConfigError(f"{place.file or place.module}", f"must define {place.name} at its top when it is loaded", "nothing",
                          "Move it above the comparison, and out of `if __name__ == \"__main__\"`.")
    return found


def load_module(name: str, file: str | None = None) -> ModuleType:
    """The module of that name; `file` is where it is. It is loaded up to the first comparison in it, at most.

    Raises
    ------
    ConfigError
        When there is no such module or file, or another has its name. What the file raises itself is passed on.
    """
    known = sys.modules.get(name)
    if known is None:
        with _loading():
            if package := name.rpartition(".")[0]:  # which may import the module
                with suppress(ReachedComparison, ModuleNotFoundError):
                    importlib.import_module(package)
            known = sys.modules.get(name) or _loaded(name, file)
    theirs = getattr(known, "__file__", None)
    if file is not None and (theirs is None or Path(theirs).resolve() != Path(file).resolve()):
        raise ConfigError(file, "must have a name of its own", f"{theirs or name}, which has it too", "Rename the file.")
    return known


def is_loading() -> bool:
    """Whether a file is being loaded for what it defines."""
    return _under_way > 0


def _loaded(name: str, file: str | None) -> ModuleType:
    spec = None
    with suppress(ModuleNotFoundError):
        spec = importlib.util.spec_from_file_location(name, file) if file else importlib.util.find_spec(name)
    if spec is None or spec.loader is None or file and not Path(file).is_file():
        raise ConfigError(file or name, "must be a Python file or a module that can be imported", "nothing there",
                          "Check the spelling and the folder.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ReachedComparison:
        pass
    except BaseException:
        del sys.modules[name]
        raise
    package, _, last = name.rpartition(".")
    if package in sys.modules:
        setattr(sys.modules[package], last, module)
    return module


@contextmanager
def _loading() -> Iterator[None]:
    global _under_way
    _under_way += 1
    try:
        yield
    finally:
        _under_way -= 1


def _resolved(module: ModuleType | None, name: str):
    for part in name.split("."):
        module = getattr(module, part, None)
    return module
