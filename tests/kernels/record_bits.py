"""A plugin of pytest that writes, for each test, digests of every array that kernels were handed, after each call: one of all
bits, and one in which an array that holds NaN counts only as such.

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
_digests = hashlib.sha256(), hashlib.sha256()
_arrays = {}  # lists of arrays and what is in them, by the list's id


def pytest_addoption(parser):
    parser.addoption("--bits", type=Path, required=True)


def _see(value):
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        missing = np.isnan(value) if value.dtype.kind == "f" else np.False_
        if missing.any():  # NaN has many bits, and which of two a sum keeps is the processor's affair
            value = np.where(missing, value.dtype.type(np.nan), value)
        _update(value.tobytes(), missing.any())
    elif isinstance(value, float):
        _update(np.float64(value).tobytes(), np.isnan(value))
    for array in _arrays.get(id(value), ((), ()))[1]:
        _see(array)


def _update(data, has_nan):
    _digests[0].update(data)
    _digests[1].update(b"NaN" if has_nan else data)  # how far it spreads is the affair of the processor's tiles


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
    global _digests
    _digests = hashlib.sha256(), hashlib.sha256()
    _arrays.clear()
    try:
        return (yield)
    finally:
        item.config.stash["bits"][item.nodeid] = [digest.hexdigest() for digest in _digests]


def pytest_sessionfinish(session):
    session.config.option.bits.write_text(json.dumps(session.config.stash["bits"], indent=0))
