"""What the pages say is so: code runs, generated parts are in sync, names are complete, links lead somewhere."""
import functools
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest
from profiling_scripts import IN_A_CHECKOUT
from test_api import GROUPS

import cllm
from cllm import errors
from cllm.cli import main as command_line
from cllm.models.architecture import program_of
from cllm.models.llama import Llama
from cllm.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "profiling/README.md",
                                     "profiling/results/README.md")),
         *sorted((ROOT / "docs").rglob("*.md"))]
EXECUTED = ["README.md", "docs/tour.md", "docs/strategies.md", "docs/how-to-extend.md", "docs/your-own-strategy.md",
            "docs/your-own-layer.md", "docs/your-own-model.md", "docs/finetuning.md", "docs/laboratory.md", "docs/comparing.md",
            "docs/training.md", "docs/real-models.md", "docs/whole-steps.md", "docs/processes.md"]
# Runs of minutes, here at a size for tests: what the page has, and what runs in its place.
SMALLER = {
    "docs/training.md": {'preset("small", max_seq_len=256)': 'preset("tiny")', "steps=1000": "steps=2",
                         "seq_len=256": "seq_len=32", "sample(\"It is a truth\", 200": "sample(\"It is a truth\", 5"},
    "docs/comparing.md": {"steps=3, rounds=2": "steps=1, rounds=1", "seq_len=64": "seq_len=16"},
    "docs/real-models.md": {"1, 512": "1, 8", '"Once"), 40': '"Once"), 4'},
}
LEFT = {"docs/comparing.md": {"report.html"}, "docs/training.md": {"book.txt", "run"},
        "docs/real-models.md": {"SmolLM2-135M", "tuned"}}  # what a page asks for, and what it says that it writes


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def module_of(name):
    """A script of the checkout as a module; its folder is in the import path only while it loads."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str((ROOT / name).parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str((ROOT / name).parent))
    return module


@pytest.fixture(scope="module")
def tables():
    return module_of("profiling/tables.py")


# code

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


def blocks_and_output(text):
    """Blocks of Python in a page, each at its own line, so that a traceback names the place; and the block of text that
    follows it, which is what it prints, or None."""
    for block in BLOCK.finditer(text):
        yield "\n" * (text[:block.start()].count("\n") + 1) + block[1], block[2]


def code_blocks(text):
    """Blocks of Python in a page."""
    return (block for block, _ in blocks_and_output(text))


def lay_out(page, folder):
    """What a page takes for granted: a text of the reader's, a model that was downloaded."""
    if page == "docs/training.md":
        (folder / "book.txt").write_text("It is a truth universally acknowledged, that a text has to be long enough. " * 50)
    elif page == "docs/processes.md":
        pytest.importorskip("mpi4py.MPI", reason="needs the extra mpi")
    elif page == "docs/real-models.md":
        pytest.importorskip("tokenizers", reason="needs the extra hf")
        model = Llama(vocab_size=300, n_layers=2, d_model=16, n_heads=4, d_ff=24, max_seq_len=32, n_kv_heads=2)
        cllm.Model(model).save_pretrained(folder / "SmolLM2-135M", dtype="bfloat16")
        cllm.BPETokenizer.train(["abc"], 256).save(folder / "SmolLM2-135M" / "tokenizer.json")


@pytest.mark.parametrize("page", EXECUTED)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = read(page)
    for words, smaller in SMALLER.get(page, {}).items():
        assert words in text
        text = text.replace(words, smaller)
    lay_out(page, tmp_path)
    blocks = list(blocks_and_output(text))
    assert blocks
    module = types.ModuleType("page")  # known by its name, as dataclasses ask for
    monkeypatch.setitem(sys.modules, "page", module)
    for block, printed in blocks:
        capsys.readouterr()
        exec(compile(block, page, "exec"), module.__dict__)
        assert printed in (None, capsys.readouterr().out)
    assert {path.name for path in tmp_path.iterdir()} == LEFT.get(page, set()), "a reader's folder is left as it was"


def test_no_page_has_a_block_that_never_runs():
    pages = {str(page.relative_to(ROOT)) for page in PAGES if any(code_blocks(page.read_text(encoding="utf-8")))}
    assert pages == set(EXECUTED)


def test_what_a_block_prints_belongs_to_it():
    text = "```python\nprint(1)\n```\n\n```text\n1\n```\n\n```python\nx\n```\n\nWords\n\n```text\n2\n```\n"
    assert [(block.strip(), printed) for block, printed in blocks_and_output(text)] == [("print(1)", "1\n"), ("x", None)]


def test_a_block_that_fails_is_seen():
    block, = code_blocks("Words\n\n```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        exec(compile(block, "page", "exec"), {})
    assert block.splitlines()[3] == "assert 1 == 2"


# generated parts

def test_the_page_of_sites_is_in_sync():
    assert read("docs/sites.md") == module_of("docs/generate_sites.py").page(), "run python docs/generate_sites.py"


@IN_A_CHECKOUT
def test_tables_and_pictures_are_in_sync(tables):
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        assert text == tables.filled(text, page.parent), f"{page}: run python profiling/tables.py"


@IN_A_CHECKOUT
def test_make_profile_draws_every_picture_of_the_pages():
    draw = module_of("profiling/draw.py")
    drawn = {"compare", *draw.SIDE_BY_SIDE}  # the first by `cllm compare` itself
    for result in (ROOT / "profiling" / "results").glob("*.json"):
        script = json.loads(result.read_text(encoding="utf-8")).get("script")
        drawn |= {result.stem + ending for ending in draw.PICTURES.get(script, {})}
    shown = {found[1] for page in PAGES for found in re.finditer(r"profiling/results/([\w.-]+)\.png",
                                                                page.read_text(encoding="utf-8"))}
    assert shown and not shown - drawn


MACHINE = {"cpu": "Some CPU", "cores": 2, "versions": {"compiler": "gcc 12"}}
CONFIG = {"n_layers": 6, "d_model": 512, "n_heads": 8, "d_ff": 2048, "vocab_size": 256}
JOB = {"machine": MACHINE, "config": CONFIG, "batch_size": 8, "seq_len": 256, "threads": 2}
SECONDS = {"median": 1.25, "min": 1.2, "max": 1.5}
RESULTS = {
    "compare": {"machine": MACHINE, "config": CONFIG, "problems": ["cache: something"],
                "job": {"batch_size": 8, "seq_len": 256, "dtype": "float32", "threads": None},
                "rows": [{"strategy": "cache", "exact": True, "error": None, "step_seconds": SECONDS,
                          "tokens_per_second": 1638.4,
                          "slowdown_vs_cache": 1.0, "predicted_step_seconds": 1.0, "arena_bytes": 419_512_345,
                          "total_bytes": 732_712_360, "rss_peak_bytes": None, "losses": [5.5, 4.25],
                          "grad_sha256": "0123456789abcdef"},
                         {"strategy": "int8", "exact": None, "error": "out of memory", "step_seconds": None}]},
    "memory": {**JOB, "script": "memory", "rows": [
        {"name": "cache", "arena_bytes": 1_500_000, "high_water_bytes": 1_500_000, "total_bytes": 2_500_000,
         "rss_start_bytes": 40_000_000, "predicted_process_bytes": 42_500_000, "sampled_process_bytes": 43_000_000,
         "sampled_over_predicted": 1.0118, "growth_bytes": 2_525_000,
         "peak": {"operation": "backward head", "alive": [
             ["head.chunk", None, "scratch", 600_000], ["blocks.*.fc.y", 0, "kept", 400_000],
             ["blocks.*.fc.y", 1, "kept", 500_000], ["blocks.*.ln.mean", 0, "kept", 100]]}}]},
    "speed": {**JOB, "script": "speed", "points": [
        {"strategy": "cache", "step": "attn", "kind": "backward", "calls": 6, "flops": 20e9, "bytes": 1e9, "seconds": 0.2,
         "limit_seconds": 0.1, "share": 0.5},
        {"strategy": "cache", "step": "ln1", "kind": "forward", "calls": 6, "flops": 0.0, "bytes": 1e8, "seconds": 0.0125,
         "limit_seconds": None, "share": None}], "rows": [
        {"name": "cache", "seconds": SECONDS, "against": "cache", "ratio_text": "1",
         "by_kind": {"forward": 0.4, "backward": 0.85}},
        {"name": "recompute", "seconds": SECONDS, "against": "cache", "ratio_text": "1.20 (1.10 to 1.30)",
         "by_kind": {"forward": 0.4, "rebuild": 0.3, "backward": 0.85}}]},
    "peers": {**JOB, "script": "compare", "rows": [
        {"name": "cache", "seconds": SECONDS, "against": "cache", "ratio_text": "1", "growth_bytes": 500_000_000,
         "loss": 5.5, "arena_bytes": 419_000_000, "predicted_seconds": 1.3},
        {"name": "torch eager", "seconds": SECONDS, "against": "cache", "ratio_text": "1.50 (1.40 to 1.60)",
         "growth_bytes": None, "loss": 5.5}]},
    "depth": {"script": "depth", "machine": MACHINE, "threads": 2, "rows": [
        {"sweep": sweep, "name": name, "layers": layers, "batch": batch, "arena_bytes": nbytes, "seconds": SECONDS}
        for sweep, name, layers, batch, nbytes in (
            ("depth", "Sqrt", 6, 1, 2_500_000), ("depth", "RecomputeAll", 6, 1, 1_500_000),
            ("depth", "Sqrt", 12, 1, 3_500_000), ("batch", "CacheAll", 6, 32, 9_000_000))]},
    "training": {"script": "training", "machine": MACHINE, "config": CONFIG, "threads": 2,
                 "settings": {"batch_size": 8, "seq_len": 256},
                 "rows": [{"name": "cllm", "seconds": 600.5, "step_seconds": SECONDS,
                           "evaluations": [{"step": 0, "val_loss": 5.5}, {"step": 400, "val_loss": 1.75}]}]},
    "overhead": {**JOB, "script": "overhead", "rows": [
        {"strategy": "cache", "what": "plain", "operations": 50, "adds_text": "", "seconds": {"median": 0.00125}},
        {"strategy": "cache", "what": "profiled", "operations": 50, "adds_text": "+0.50% (-0.10% to +1.10%)",
         "seconds": {"median": 0.00126}}]},
    "predictions": {**JOB, "script": "predictions", "rows": [
        {"name": "cache", "is_budget": False, "predicted_seconds": 1.0, "seconds": SECONDS, "arena_bytes": 5_000_000,
         "total_bytes": 8_000_000},
        {"name": "budget:9000000B", "is_budget": True, "predicted_seconds": 1.125, "seconds": SECONDS,
         "arena_bytes": 6_000_000, "total_bytes": 9_000_000},
        {"name": "budget:7000000B", "is_budget": True, "predicted_seconds": 1.3, "seconds": SECONDS,
         "arena_bytes": 4_000_000, "total_bytes": 7_000_000}],
        "budgets": {"steps": [{"from": "budget:7000000B", "to": "budget:9000000B", "ratio": 0.75, "low": 0.7, "high": 0.8}],
                    "against_best": [{"budget": "budget:9000000B", "best": "cache", "ratio": 1.02, "low": 1.0,
                                      "high": 1.04}]}},
    "changes": {**JOB, "script": "changes", "rows": [
        {"change": change, "name": name, "error": error, "predicted_seconds": 1.2625, "seconds": SECONDS}
        for change, name, error in (("none", "cache", 0.01), ("none", "recompute", -0.02), ("batch 4", "cache", 0.03),
                                    ("batch 4", "recompute", -0.06))]},
    "packing": {**JOB, "script": "packing", "ways": {
        "packed": {"batches": 12, "used": 0.96543, "targets_per_second": 12345.6}}},
    "optimum": {**JOB, "script": "optimum", "rows": [{"program": "GPT, 1 block", "steps": 13, "points": [
        {"limit": 5_000_000, "ours_seconds": 1.03, "best_seconds": 1.0, "gap": 0.0, "ours_live_bytes_at_its_seconds": 6_000_000,
         "best_live_bytes": 5_000_000},
        {"limit": 7_000_000, "ours_seconds": 0.5, "best_seconds": 0.5, "gap": 0.01, "ours_live_bytes_at_its_seconds": 7_000_000,
         "best_live_bytes": 7_000_000}]}]},
    "kernels": {"script": "kernels", "machine": MACHINE, "threads": 1, "rows": [
        {"kernel": "linear_forward", "shape": [64, 512, 2048], "unit": "GFLOP/s", "limit": 100e9,
         "rate": {"cllm": 81.25e9, "numpy": 70e9}, "share": {"cllm": 0.8125},
         "text": {"numpy": "0.86 (0.80 to 0.90)"}}]},
}
EXPECTED = {
    "compare": ["| `cache` | 1.250 (1.200 to 1.500) | 1,638 | 1.00 | 419.5 | 732.7 | – | 4.2500 | `0123456789ab` |",
                "| `int8` | failed: out of memory |", "Problem: cache: something",
                "8 × 256; float32; 2 threads; Some CPU"],
    "compare predictions": ["| `cache` | 1.000 | 1.250 | -20.0% |", "| median of the distances |  |  | 20.0% |"],
    "memory": ["| `cache` | 1.5 | 1.5 | 2.5 | 40.0 | 42.5 | 43.0 | 1.012 | 2.5 | 1.010 |"],
    "memory peak": ["| strategy | site | kind | outside | block 0 | block 1 | MB in all |",
                    "| `cache` | `blocks.*.fc.y` | kept | – | 0.4 | 0.5 | 0.9 |\n| `cache` | `head.chunk` | scratch | 0.6 |"],
    "speed": ["| `recompute` | 1.250 (1.200 to 1.500) | 1.20 (1.10 to 1.30) | 400.0 | 850.0 | 300.0 |",
              "time against cache"],
    "speed roofline": ["| `cache` | `attn` | backward | 200.00 | 20.0 | 100.0 | 5.0 | 0.50 |",
                       "| `cache` | `ln1` | forward | 12.50 | – | – | 8.0 | – |"],
    "peers": ["| `torch eager` | 1.250 (1.200 to 1.500) | 1.50 (1.40 to 1.60) | – | – | 5.500000 |"],
    "peers predictions": ["| `cache` | 1.300 | 1.250 | +4.0% |"],
    "overhead": ["| `cache` | plain | 50 | 1.2500 | – |", "| `cache` | profiled | 50 | 1.2600 | +0.50% (-0.10% to +1.10%) |"],
    "predictions": ["| `cache` | 1.000 | 1.250 | -20.0% |", "| median of the distances |  |  | 10.0% |"],
    "predictions budgets": ["| 7.0 MB | 4.0 | 1.300 | 1.250 (1.200 to 1.500) | – | – |\n"
                            "| 9.0 MB | 6.0 | 1.125 | 1.250 (1.200 to 1.500) | 0.750 (0.700 to 0.800) "
                            "| 1.020 (1.000 to 1.040) (`cache`) |"],
    "depth layers": ["| layers | Sqrt, MB | Sqrt, ms | RecomputeAll, MB | RecomputeAll, ms |",
                     "| 6 | 2.5 | 1250.0 | 1.5 | 1250.0 |\n| 12 | 3.5 | 1250.0 | – | – |"],
    "depth batch": ["| 32 | 9.0 | 1250.0 |"],
    "training": ["| cllm | 400 | 600.5 | 1.250 (1.200 to 1.500) | 1.7500 |", "batch 8 × 256"],
    "changes": ["| as calibrated | +1.0% (-16 to +5) | -2.0% (-16 to +5) | 2.0% |\n",
                "| batch 4 | +3.0% (-16 to +5) | -6.0% (-16 to +5) | 6.0% |"],
    "packing": ["| packed | 12 | 96.5% | 12,346 |"],
    "optimum": ["| GPT, 1 block | 13 | 1 of 2 | 1.00% | 1.50% | 3.00% | 1 of 2 | 10.00% | 20.00% |"],
    "optimum points": ["| GPT, 1 block, 5.0 | 1.0300 | 1.0000 | 1.0300 | 0.00% | 6.0 |"],
    "kernels": ["| `linear_forward` | 64 × 512 × 2048 | GFLOP/s | 81.2 | 70.0 | 100.0 | 0.81 | 0.86 (0.80 to 0.90) |",
                "1 thread; Some CPU"],
}


@pytest.fixture
def results(tmp_path):
    for name, data in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    (tmp_path / "memory.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("name", EXPECTED)
def test_a_table_holds_what_was_measured(tables, results, name):
    page = f"Before\n<!-- table:{name} -->\nan old figure\n<!-- end -->\nAfter\n"
    made = tables.filled(page, results, results)
    assert made.startswith(f"Before\n<!-- table:{name} -->\n| ") and made.endswith("\n<!-- end -->\nAfter\n")
    for line in EXPECTED[name]:
        assert line in made
    assert "an old figure" not in made
    rows = [line for line in made.splitlines() if line.startswith("|")]
    assert len({row.count(" | ") for row in rows}) == 1, "every row has as many cells as the header"
    assert tables.filled(made, results, results) == made


def test_what_was_not_measured_says_so(tables, results):
    page = ("<!-- table:none -->\n1.0\n<!-- end -->\n<!-- picture:none A curve -->\n<!-- end -->\n"
            "<!-- picture:memory A curve -->\n<!-- end -->\n")
    made = tables.filled(page, results / "docs", results)
    assert "Not measured yet" in made and "1.0" not in made and "*Not drawn yet: A curve.*" in made
    assert "![A curve](../memory.png)" in made


@pytest.mark.parametrize("page", ["<!-- table:memory -->\nfigures\n",
                                  "<!-- table:memory -->\n<!-- table:speed -->\n<!-- end -->\n",
                                  "<!-- table:memory upside-down -->\n<!-- end -->\n"])
def test_a_marker_that_makes_no_sense_is_refused(tables, results, page):
    with pytest.raises(ValueError, match="no <!-- end -->|no view"):
        tables.filled(page, results, results)


# completeness

def test_the_map_has_every_module_in_the_order_of_imports():
    section = read("docs/architecture.md").split("## The map")[1].split("## The path")[0]
    rows = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == [line.split() for line in GROUPS.strip().splitlines()]


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"qkv": "lattice"}, {"attention": "crystalline"}])
def test_the_page_of_the_model_names_every_parameter(changes):
    page = read("docs/model.md")
    for name in program_of(cllm.ModelConfig.preset("tiny", **changes)).parameters:
        assert f"`{re.sub('[0-9]+', '{i}', name, count=1) if name.startswith('blocks.') else name}`" in page


def test_pages_name_every_choice_of_the_model():
    from cllm.models.gpt import CHOICES
    page = read("docs/model.md")
    for name in CHOICES:
        for choice in CHOICES[name]:
            assert re.search(f'`{choice}`|"{choice}"', page), f"{name}={choice}"


def test_pages_name_every_strategy():
    readme, page = read("README.md"), read("docs/strategies.md")
    for word in STRATEGIES:
        assert re.search(f"`{word}[:`]", readme) and re.search(f"`{word}[:`]", page), word


def test_the_readme_names_every_command_and_no_other():
    assert set(re.findall(r"^\| `cllm (\w+)`", read("README.md"), re.MULTILINE)) == set(command_line.commands)


def test_the_page_of_errors_names_every_error():
    found = {name for name, one in vars(errors).items()
             if isinstance(one, type) and issubclass(one, cllm.CllmError) and one is not cllm.CllmError}
    assert set(re.findall(r"^\| `(\w+)` \|", read("docs/errors.md"), re.MULTILINE)) == found


def test_the_page_on_extending_names_every_example():
    page = read("docs/how-to-extend.md")
    for path in (ROOT / "examples").glob("*.py"):
        assert f"(../examples/{path.name})" in page


def test_own_layers_are_told_every_word_of_a_declaration():
    from cllm.program.layer import Layer
    page = read("docs/your-own-layer.md")
    kinds = ("Site", "Param", "Table", "Scratch", "Feed")
    words = [name for name in Layer.__annotations__ if not name.endswith("_flow") and name not in ("inputs", "fed")]
    for word in (*kinds, *words, "evaluate", "divisor", "start", "extend", "accumulate", "forward_flops"):
        assert re.search(rf"`{word}\b|\b{word}[ =(]", page), word


def test_own_strategies_are_told_every_field_of_the_ledger():
    from cllm.planner.ledger import Entry
    page = read("docs/your-own-strategy.md")
    for name in Entry.__dataclass_fields__:
        assert f"`{name}`" in page


def test_the_glossary_has_every_kind_of_buffer():
    from cllm.planner.ledger import Ledger
    from cllm.program.workload import Workload
    from cllm.strategies import parse
    ledger = Ledger(program_of(cllm.ModelConfig.preset("tiny")), Workload(2, 8, threads=1))
    kinds = {buffer.kind for name in ("recompute@1", "int8", "cache@1")
             for buffer in ledger.build(parse(name).decide(ledger))[0].buffers}
    assert {"kept", "packed", "rebuilt", "stash"} <= kinds
    assert not {kind for kind in kinds if f"`{kind}`" not in read("docs/glossary.md")}


# links

def links(page):
    """Addresses in a page that are no web addresses, without anchors."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for address in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", address):
            yield address.partition("#")[0]


@IN_A_CHECKOUT
def test_links_lead_to_files():
    missing = [(page, address) for page in PAGES for address in links(page)
               if address and not (page.parent / address).exists()]
    assert not missing


@functools.cache
def anchors(page):
    """What a link may end in after ``#``: the headings, as they are shown on the web."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_headings():
    wrong = [(page, name, anchor) for page in PAGES
             for name, anchor in re.findall(r"\]\(([^)\s:#]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
             if anchor not in anchors((page.parent / name) if name else page)]
    assert not wrong


def test_the_index_names_every_page():
    named = {(ROOT / "docs" / address).resolve() for address in links(ROOT / "docs" / "README.md") if address}
    for folder in (ROOT / "docs", *(page.parent for page in (ROOT / "docs").rglob("README.md"))):
        rooms = {room for room in folder.iterdir() if (room / "README.md").exists()}
        named |= {(folder / address).resolve() for address in links(folder / "README.md") if address}
        assert {room / "README.md" for room in rooms} <= named, f"name the room in {folder.name}/README.md"
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page != ROOT / "docs" / "README.md"}
    assert pages <= named, "name the page in the README.md of its room"


def test_pages_that_sources_name_exist():
    sources = [path for folder in ("cllm", "profiling", "tests") for ending in ("py", "pxi", "pyx")
               for path in (ROOT / folder).rglob(f"*.{ending}")]
    missing = {f"{path.relative_to(ROOT)}: {name}" for path in (*sources, ROOT / "setup.py", ROOT / "Makefile")
               for name in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8")) if not (ROOT / name).exists()}
    assert not missing


def test_files_that_pages_name_exist():
    named = re.compile(r"`((?:tests|cllm|profiling|docs|examples)/[\w/.-]+\.(?:py|pxi|md|pyx))`")
    for page in PAGES:
        for name in named.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists() or "NAME" in name, f"{page.name} names {name}"
