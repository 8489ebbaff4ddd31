"""A plugin of pytest that writes, for each test, a digest of every array that kernels were handed, after each call.

    python -m pytest -n 0 -p record_bits --bits FILE.json tests/kernels

Two builds of the kernels that run the same tests must write the same file: see tests/test_variants.py.
"""
import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from cllm import _kernels

NEITHER = ("workspace", "seconds")  # what a kernel leaves in its scratch, and what the clock says
_digest = hashlib.sha256()
_arrays = {}  # lists of arrays and what is in them, by the list's id


def pytest_addoption(parser):
    parser.addoption("--bits", type=Path, required=True)


def _see(value):
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        # NaN has many bits, and which of two a sum keeps is the processor's affair
        _digest.update(np.where(np.isnan(value), np.nan, value).tobytes() if value.dtype.kind == "f" else value.tobytes())
    elif isinstance(value, float):
        _digest.update(np.float64(value).tobytes())
    for array in _arrays.get(id(value), ((), ()))[1]:
        _see(array)


def _seen(call):
    @functools.wraps(call)
    def seen(*arguments, **named):
        result = call(*arguments, **named)
        for value in (*arguments, *(value for name, value in named.items() if name not in NEITHER), result):
            _see(value)
        return result

    return seen


def _listed(make):
    def listed(arrays):
        arrays = list(arrays)
        made = make(arrays)
        _arrays[id(made)] = made, arrays
        return made

    return listed


def pytest_configure(config):
    _kernels.ArrayList = _listed(_kernels.ArrayList)
    for name in dir(_kernels):
        call = getattr(_kernels, name)
        if type(call).__name__ in ("cython_function_or_method", "fused_cython_function"):
            setattr(_kernels, name, _seen(call))
    config.stash["bits"] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    global _digest
    _digest = hashlib.sha256()
    _arrays.clear()
    try:
        return (yield)
    finally:
        item.config.stash["bits"][item.nodeid] = _digest.hexdigest()


def pytest_sessionfinish(session):
    session.config.option.bits.write_text(json.dumps(session.config.stash["bits"], indent=0))
