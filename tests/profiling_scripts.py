"""The modules of profiling/, for tests: imported from where the scripts themselves import them."""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "profiling"


def script(name):
    """The module of that name; its folder is in the import path only while it loads."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
