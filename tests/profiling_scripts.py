"""The modules of profiling/, for tests: imported from where the scripts themselves import them."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "profiling"
FILES = sorted(FOLDER.rglob("*.py"))
IN_A_CHECKOUT = pytest.mark.skipif(not list((FOLDER / "results").glob("*.json")),
                                   reason="stored results are megabytes, and not in the source distribution")

def name_of(path):
    """A file of profiling/ as its scripts import it: "views.steps"."""
    return ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__")


def script(name):
    """The module of that name, such as "speed" or "peers.process"; profiling/ is in the import path only while it loads."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
