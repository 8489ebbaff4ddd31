"""Writes docs/sites.md: what every layer declares, and what a strategy may name, read off the code.

    python docs/generate_sites.py            write the page
    python docs/generate_sites.py --check    change nothing; exit with 1 if the page would change
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "sites.md"
PRESET = "small"

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # a build in the checkout serves when nothing is installed


def main() -> int:
    """Write the page; the exit code is 1 when --check finds that it is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page would change")
    check = parser.parse_args().check
    text = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    print(f"{'not up to date' if check else 'written'}: {PAGE.relative_to(ROOT)}")
    return int(check)


def page() -> str:
    """The whole page."""
    from cllm.layers import LAYERS
    from cllm.models.architecture import program_of
    from cllm.models.gpt import ModelConfig
    from cllm.program.declare import HANDED, HANDED_ARRAYS, STANDARD_FEEDS

    config = ModelConfig.preset(PRESET)
    lines = [
        "# Sites, parameters and tables",
        "",
        "Made by `python docs/generate_sites.py` from the declarations in `cllm/layers/`; do not edit by hand.",
        "Shape letters are those of [`cllm/program/dims.py`](../cllm/program/dims.py): B sequences, T time steps, N = B T "
        "rows, C channels, H heads, D = C / H, F channels of the feed-forward layer, V vocabulary, P rows of the position "
        "table, I and O columns in and out of one layer, S products side by side.",
        "An empty dtype is the model's own.",
        "",
        "## What the executor hands in",
        "",
        "A layer that names one of these in a method gets it; `tokens` and `targets` are fed by the caller, and a layer or a "
        "model may declare others.",
        "",
        *_table(("name", "shape", "dtype"), [
            *((_code(f.name), _code(f.shape), f.dtype) for f in STANDARD_FEEDS.values()),
            *((_code(name), _code(shape), dtype) for name, (shape, dtype) in HANDED_ARRAYS.items()),
            *((_code(name), "", "a whole number") for name in HANDED if name not in HANDED_ARRAYS)]),
        "",
        "## Layers",
        "",
        "`forward` reads the names before the arrow and writes those after it; `d` before a name is a gradient.",
    ]
    for layer in LAYERS:
        lines += ["", *_layer(layer)]
    lines += ["", "## What a strategy may name", "", *_values(program_of(config), config)]
    return "\n".join(lines) + "\n"


def _layer(layer) -> list[str]:
    module = sys.modules[layer.__module__]
    source = _file(module)
    lines = [f"### {layer.__name__}", "", f"[`{source}`](../{source}): {module.__doc__.splitlines()[0]}", ""]
    lines.append(f"Settings: {', '.join(_code(field.name) for field in fields(layer))}.")
    for method in ("forward", "accumulate", "backward", "evaluate"):
        flow = getattr(layer, f"{method}_flow")
        if flow.exists:
            reads, writes = ", ".join(map(_code, flow.reads)), ", ".join(map(_code, flow.writes))
            lines += ["", f"* {method}: {reads or 'nothing'} → {writes}"]
            if method != "forward":
                lines.pop(-2)
    special = [("added to", layer.adds), ("passed on unchanged", layer.passes),
               ("may overwrite `dy`", layer.overwrites), ("may be bfloat16", layer.narrow)]
    lines += [f"* {words}: {', '.join(map(_code, names))}" for words, names in special if names]
    lines += [f"* input {_code(name)}: {_code(shape)}" for name, shape in layer.reads.items()]
    facts = [("looks across positions", layer.across), ("sums rows in order", layer.in_order)]
    lines += [f"* {words}" for words, holds in facts if holds]
    rows = [("optional site" if s.optional else "site", _code(s.name), _code(s.shape), s.dtype or "", s.group,
             s.meaning) for s in layer.sites]
    rows += [("parameter", _code(p.name), _code(p.shape), "", "", _parameter(p)) for p in layer.params]
    rows += [("table", _code(t.name), _code(t.shape), "", "", f"constant, where `{t.when}`" if t.when else "constant")
             for t in layer.tables]
    return [*lines, "", *_table(("kind", "name", "shape", "dtype", "group", "meaning"), rows)]


def _parameter(param) -> str:
    start = "starts N(0, std²)" if param.init == "normal" else f"starts as {getattr(param.init, '__name__', param.init)}"
    held = "; held constant" if param.constant is True else f"; row `{param.constant}` held constant" if param.constant else ""
    return f"{start}, where `{param.when}`{held}" if param.when else start + held


def _values(program, config) -> Iterable[str]:
    """Groups and names that `Selective`, `Compressed`, `Spill` and `Plan` take, for one preset."""
    yield (f"In a block of the preset `{PRESET}` (C {config.d_model}, H {config.n_heads}, F {config.d_ff}), these are "
           "the values that some backward reads. A strategy names one by its name inside the block, or all of a group "
           "by its group. "
           "Optional ones exist only when they are named. The output of a block is decided by the plan's segments.")
    yield ""
    first = [v for v in program.values.values() if v.block == 0 and program.readers[v.name]]
    yield from _table(("name", "group", "shape", "dtype", "read by the backward of", "meaning"), (
        (_code(v.key) + _remark(program, v, "output of the block"), v.group, _code(v.shape),
         v.dtype or "", _readers(program, v), v.meaning) for v in first))
    yield ""
    yield "Outside the blocks, where a plan's `ends` may name them in full:"
    yield ""
    outside = [v for v in program.values.values() if v.block is None and program.readers[v.name]]
    yield from _table(("name", "group", "shape", "dtype", "read by the backward of", "meaning"), (
        (_code(v.name) + _remark(program, v, "input of block 0"), v.group, _code(v.shape),
         v.dtype or "", _readers(program, v), v.meaning) for v in outside))


def _remark(program, value, boundary: str) -> str:
    words = "optional" if value.optional else boundary if value.name in program.block_inputs else ""
    return f" ({words})" if words else ""


def _readers(program, value) -> str:
    return ", ".join(_code(step.name.replace("blocks.0.", "").replace("blocks.1.", "next block's "))
                     for step in program.readers[value.name])


def _file(module) -> str:
    return module.__name__.replace(".", "/") + ".py"


def _code(word: str) -> str:
    return f"`{word}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


if __name__ == "__main__":
    sys.exit(main())
