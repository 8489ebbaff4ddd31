"""Write cllm/_kernels.pyi, what the compiled module offers, from its sources: python tools/make_stubs.py [--check]."""
import re
import sys
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cllm"
STUB = PACKAGE / "_kernels.pyi"
HEAD = '''"""Kernels, as the sources declare them; written by tools/make_stubs.py."""
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

# of all arrays of a call one
Floating = NDArray[np.float32] | NDArray[np.float64]
# may be bfloat16, whose bits are uint16
Rows = Floating | NDArray[np.uint16]

class ArrayList:
    arrays: tuple[NDArray[Any], ...]
    def __init__(self, arrays: Iterable[NDArray[Any]]) -> None: ...
    def __len__(self) -> int: ...

# bytes of how many elements of a row, by kind
STORED_KINDS: dict[str, tuple[int, int]]

class StoredRows:
    parts: tuple[tuple[str, NDArray[np.uint8], NDArray[np.int32] | None], ...]
    turned: bool
    def __init__(self, parts: Iterable[tuple[str, NDArray[np.uint8], NDArray[np.int32] | None]], length: int,
                 turned: bool = ...) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...

class BoundCall:
    def __init__(self, method: Callable[..., object], reads: Iterable[object], writes: dict[str, Any],
                 scratch: Iterable[NDArray[Any]] = ...) -> None: ...
    def __call__(self) -> None: ...
    def writing(self, **writes: NDArray[Any]) -> BoundCall: ...

class CodeList:
    arrays: tuple[NDArray[Any], ...]
    def __init__(self, arrays: Iterable[NDArray[Any]]) -> None: ...
    def __len__(self) -> int: ...

class Threads:
    def __init__(self, n: int) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None: ...

'''
SCALARS = {"int": "int", "Py_ssize_t": "int", "unsigned int": "int", "long long": "int", "int64_t": "int", "double": "float",
           "bint": "bool", "list": "list[Callable[[], object]]", "str": "str",
           **{name: name for name in ("ArrayList", "CodeList", "StoredRows")}}
ELEMENTS = {"floating": "Floating", "double": "NDArray[np.float64]", "long long": "NDArray[np.int64]",
            "float": "NDArray[np.float32]"}
# objects: arrays that may be bfloat16, weights as they lie in a file, and what may be None
UNTYPED = {"weight": "Floating | StoredRows", **dict.fromkeys(("bias", "positions"), "Floating | None"),
           **dict.fromkeys(("x", "y", "dy", "qkv"), "Rows"),
           **dict.fromkeys(("coordinates", "alpha", "beta", "cos", "sin"), "Floating | None"), "kv_heads": "int | None",
           "scale": "float | None", "softcap": "float | None", "stop": "int | None", "n": "int"}
RETURNS = {"vector_bytes": "int", "block_bytes": "int", "get_threads": "int", "first_fit": "int", "int8_bytes": "int",
           "before_fork": "bool",
           "attention_workspace": "int", "linear_workspace": "int", "block_linear_workspace": "int",
           "bfloat16_instruction": "str", "bfloat16_pairs_agree": "bool", "bfloat16_tiles_agree": "bool",
           "nonfinite_arrays": "tuple[int, ...]", "philox4x32": "tuple[int, int, int, int]"}
DEF = re.compile(r"^def (\w+)\((.*?)\):\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)


def sources():
    """Texts of the families, in the order in which the extension includes them."""
    names = re.findall(r'^include "(.+)"$', (PACKAGE / "_kernels.pyx").read_text(), re.MULTILINE)
    return [(PACKAGE / name).read_text() for name in names]


def parameter(text):
    """One parameter of a stub."""
    if text == "*":
        return text
    declared, _, default = (part.strip() for part in text.partition("="))
    kind, name = re.fullmatch(r"(?:const )?(.*?)\s*(\w+)(?: not None)?", declared).groups()
    if not kind:
        type_ = UNTYPED[name]
    elif "[" in kind:
        element = kind.partition("[")[0]
        type_ = ELEMENTS.get(element) or f"NDArray[np.{element.removesuffix('_t')}]"
        type_ += "" if declared.endswith("not None") else " | None"
    else:
        type_ = SCALARS[kind]
    return f"{name}: {type_}" + (" = ..." if default else "")


def wrapped(text, indent, end):
    """Lines of a declaration; its end, which must not be broken, has its room in the last of them."""
    lines = textwrap.wrap(text + "x" * len(end), 120, subsequent_indent=" " * indent, break_on_hyphens=False)
    return [*lines[:-1], lines[-1][:-len(end)] + end]


def stub():
    """The whole stub."""
    lines = []
    for name, parameters, body in sorted(found for text in sources() for found in DEF.findall(text)):
        returns = re.search(r"^(?: {4})+return \S", body, re.MULTILINE)
        if bool(returns) != (name in RETURNS):
            raise SystemExit(f"{name}: what a kernel returns must stand in RETURNS, and nothing else; add it or take it out.")
        # commas inside of brackets divide axes, those outside parameters
        parts = [parameter(" ".join(part.split())) for part in re.split(r",(?![^\[]*\])", parameters) if part.strip()]
        start, end = f"def {name}(", f") -> {RETURNS.get(name)}: ..."
        lines += wrapped(start + ", ".join(parts), len(start), end)
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        STUB.write_text(stub())
    elif not STUB.exists() or STUB.read_text() != stub():
        raise SystemExit(f"{STUB} must be what the sources declare; it is older. Run: python tools/make_stubs.py")
