"""What stands in the contract is there: public names, the command, and the order in which modules may import."""
import ast
import graphlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cllm
from cllm.cli import main

PACKAGE = Path(cllm.__file__).parent

PUBLIC = """
    ModelConfig GPT Executor AdamW clip_grad_norm accumulate_weight_gradient set_num_threads versions Plan
    CacheAll RecomputeAll EveryNth Sqrt Binomial Selective PerBlock
    Script ChenGreedy Rotor Checkmate DTR KorthikantiSelective Knapsack KeepProducts
    CllmError ConfigError ShapeError DtypeError LayoutError TokenError DeclarationError PlanError BudgetError
    NonFiniteError OptimizerError BuildError
""".split()

# Rooms and modules of cllm, in groups: a module imports only from groups above its own, and in a room, never in a circle.
GROUPS = """
    errors cgroups _build_info
    checks locate
    files
    dispatch _kernels
    threads
    program
    arrays tensors weights
    layers weight_gradient
    plans
    schedule
    planner
    strategies
    models
    planning
    executor
    distributed
    optim corpus tokenizer snapshot sampling proof about
    testing pretrained calibrate train
    finetuning
    comparison
    lab
    cli
    __main__
"""
LEVEL = {name: level for level, line in enumerate(GROUPS.strip().splitlines()) for name in line.split()}
# What reports the time that steps take; nothing else may depend on a clock. That of operations is kernels/clock.pxi.
MEASURING = {"calibrate", "comparison", "train", "lab", "cli"}
STOPWATCH = "executor/stopwatch.py"  # of each of several processes
CLOCKS = {"time", "timeit", "datetime", "sched"}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit(path):
    """The name that stands in the groups: a module of the top level, or the package that holds the file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source, package=()):
    """Dotted names that a source imports, at any depth; relative ones are made absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[:len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield ".".join(base)
            yield from (".".join([*base, alias.name]) for alias in node.names)


def wrong_imports(name, source, package=("cllm",)):
    """What a module of unit `name` imports from cllm although it does not stand above `name` (or in no group)."""
    found = set()
    for dotted in imports(source, package):
        if dotted.startswith("cllm."):
            other = dotted.split(".")[1]
            if other != name and LEVEL.get(other, 999) >= LEVEL[name]:
                found.add(other)
    return sorted(found)


def test_public_names():
    for name in PUBLIC:
        assert hasattr(cllm, name) and name in cllm.__all__, name
        assert inspect.getdoc(getattr(cllm, name)), f"{name} has no docstring"


def test_all_is_sorted_out():
    assert len(set(cllm.__all__)) == len(cllm.__all__)
    for name in cllm.__all__:
        assert hasattr(cllm, name), name
    public = {n for n in vars(cllm) if not n.startswith("_") and not inspect.ismodule(getattr(cllm, n))}
    assert public <= set(cllm.__all__), f"public but not in __all__: {sorted(public - set(cllm.__all__))}"


def test_rooms_that_few_ask_for_are_imported_when_they_are():
    text = ("import cllm, sys; assert 'cllm.lab' not in sys.modules; cllm.lab.from_json; cllm.testing.check_layer; "
            "cllm.distributed.Executor; assert 'mpi4py' not in sys.modules; "
            "assert not hasattr(cllm, 'laboratory')")
    subprocess.run([sys.executable, "-c", text], check=True)


def test_a_module_imports_only_from_groups_above_its_own():
    for path in modules():
        assert unit(path) in LEVEL, f"{path.name} stands in no group: give it a place here and in docs/architecture.md"
        package = ("cllm", *path.relative_to(PACKAGE).parts[:-1])
        assert not wrong_imports(unit(path), path.read_text(), package), path


def test_only_what_measures_has_a_clock():
    for path in modules():
        names = {dotted.split(".")[0] for dotted in imports(path.read_text())}
        assert unit(path) in MEASURING or path == PACKAGE / STOPWATCH or not names & CLOCKS, path
        assert unit(path) in MEASURING or "random" not in names, f"{path}: randomness comes from a seeded generator"


def test_one_family_of_kernels_has_a_clock():
    clocks = re.compile(r"clock|timespec|gettime|rdtsc|wtime")
    families = {path.name for path in PACKAGE.rglob("*.p[xy][ix]") if clocks.search(path.read_text())} - {"_kernels.pyx"}
    assert families == {"clock.pxi"}


def circles(sources):
    """Modules, in order, that import one another in a circle; `sources` are texts by dotted name. None where there is none."""
    graph = {name: {other for dotted in imports(text, name.split(".")[:-1]) for other in (dotted, dotted.rpartition(".")[0])
                    if other in sources and other != name} for name, text in sources.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_no_modules_import_one_another_in_a_circle():
    named = {".".join(("cllm", *path.relative_to(PACKAGE).with_suffix("").parts)): path.read_text() for path in modules()}
    assert not circles({name: text for name, text in named.items() if not name.endswith("__init__")})
    assert circles({"cllm.a.x": "from cllm.a.y import f", "cllm.a.y": "from cllm.a import x"})


def test_a_family_is_named_in_its_own_room_at_the_front_door_and_in_help_alone():
    families = {path.stem for path in (PACKAGE / "models").glob("*.py")
                if re.search(r"^class \w+\((Architecture|ModelConfig)\)", path.read_text("utf-8"), re.MULTILINE)}
    families -= {"adapted", "excerpt"}  # any of them: with adapters, as it is used
    assert {"gpt", "crystalline", "llama", "gemma", "neox", "phi"} == families
    named = re.compile(rf"ModelConfig|GPT\b|cllm\.models(\.| import .*\b)({'|'.join(families)})\b")
    elsewhere = [path for ending in ("py", "pyx", "pxi") for path in PACKAGE.rglob(f"*.{ending}")
                 if path.parent != PACKAGE / "models" and path != PACKAGE / "__init__.py"]
    found = {f"{path.name}: {line.strip()}" for path in elsewhere for line in path.read_text("utf-8").splitlines()
             if named.search(line)}
    assert {line for line in found if 'help="' not in line} == set() and len(found) <= 2, found


def test_the_import_rule_can_fail():
    for unit_name, source, package, wrong in (
            ("layers", "from cllm.executor.executor import Executor", ("cllm",), ["executor"]),
            ("plans", "def f():\n    import cllm.strategies.sqrt", ("cllm",), ["strategies"]),
            ("schedule", "from . import plans, planner", ("cllm",), ["planner"]),
            ("layers", "from ..models import gpt", ("cllm", "layers"), ["models"]),
            ("checks", "from cllm import program, errors", ("cllm",), ["program"]),
            ("planner", "from cllm import GPT", ("cllm",), ["GPT"]),
            ("executor", "from cllm.plans.plan import Plan\nfrom cllm import _kernels\nimport numpy", ("cllm",), []),
            ("strategies", "from cllm.strategies.naming import named", ("cllm", "strategies"), [])):
        assert wrong_imports(unit_name, source, package) == wrong
    assert set(imports("from time import perf_counter\nimport timeit")) >= {"time", "timeit"}


def test_a_model_is_what_the_contract_says():
    config = cllm.ModelConfig.preset("tiny")
    assert (config.vocab_size, config.n_layers, config.d_model, config.n_heads, config.d_ff, config.max_seq_len) == (
        256, 2, 64, 4, 256, 256)
    assert config == cllm.ModelConfig(vocab_size=256, n_layers=2, d_model=64, n_heads=4, d_ff=256, max_seq_len=256,
                                      qkv="full", qkv_bias=True, out_proj=True, positions="learned", activation="gelu",
                                      tied=True, attention="softmax", dropout=0.0, norm_eps=1e-5, loss="cross_entropy")
    small, gpt2 = cllm.ModelConfig.preset("small"), cllm.ModelConfig.preset("gpt2")
    assert (small.n_layers, small.d_model, small.n_heads, small.d_ff, small.max_seq_len) == (6, 512, 8, 2048, 1024)
    assert (gpt2.vocab_size, gpt2.n_layers, gpt2.d_model, gpt2.n_heads, gpt2.d_ff) == (50257, 12, 768, 12, 3072)
    with pytest.raises((AttributeError, TypeError)):
        config.d_model = 128
    model = cllm.GPT(config, seed=0, dtype="float64")
    assert set(model.gradients) == set(model.parameters)
    for name, array in model.parameters.items():
        assert array.dtype == "float64" and array.flags.c_contiguous and array.flags.writeable
        assert model.gradients[name].shape == array.shape and not np.shares_memory(model.gradients[name], array)


def test_parameters_are_live():
    model = cllm.GPT(cllm.ModelConfig(13, 1, 16, 2, 24, 9), seed=0)
    ex = cllm.Executor(model, batch_size=1, seq_len=4, strategy=cllm.CacheAll())
    tokens = np.arange(4)[None]
    before = ex.logits(tokens)
    model.parameters["blocks.0.mlp.fc2.bias"][...] = 0.5
    assert (ex.logits(tokens) != before).any()


def test_an_executor_is_what_the_contract_says():
    model = cllm.GPT(cllm.ModelConfig.preset("tiny"), seed=0)
    ex = cllm.Executor(model, batch_size=2, seq_len=8, strategy=cllm.RecomputeAll(), optimizer="adamw",
                       num_threads=None, seed=0, determinism_check="off")
    tokens = np.zeros((2, 8), np.int64)
    loss = ex.loss_and_grad(tokens, tokens, num_targets=None)
    assert type(loss) is float and type(ex.loss(tokens, tokens)) is float
    logits = ex.logits(tokens)
    assert logits.shape == (2, 8, 256) and logits.dtype == np.float32
    assert isinstance(ex.plan, cllm.Plan) and ex.schedule
    assert type(ex.memory.arena_bytes) is int and type(ex.memory.total_bytes) is int
    assert isinstance(str(ex.memory.table()), str) and len(list(ex.memory.timeline())) > 2
    parameters = sum(p.nbytes for p in model.parameters.values())
    assert ex.memory.total_bytes >= 4 * parameters + ex.memory.arena_bytes


@pytest.mark.parametrize("name, strategy", [
    ("cache", cllm.CacheAll()), ("recompute", cllm.RecomputeAll()), ("every:2", cllm.EveryNth(2)),
    ("sqrt", cllm.Sqrt()), ("binomial:3", cllm.Binomial(3)), ("selective", cllm.Selective()),
    ("selective:norm+act", cllm.Selective(recompute=("norm", "act"))),
    ("selective:mlp", cllm.Selective(recompute=("mlp",)))])
def test_a_strategy_may_be_given_by_name_or_as_its_plan(name, strategy):
    model = cllm.GPT(cllm.ModelConfig(13, 4, 16, 2, 24, 9), seed=0)
    by_object = cllm.Executor(model, batch_size=2, seq_len=8, strategy=strategy)
    by_name = cllm.Executor(model, batch_size=2, seq_len=8, strategy=name)
    by_plan = cllm.Executor(model, batch_size=2, seq_len=8, strategy=by_object.plan)
    assert by_name.schedule == by_object.schedule == by_plan.schedule
    assert by_name.memory.arena_bytes == by_plan.memory.arena_bytes == by_object.memory.arena_bytes


@pytest.mark.parametrize("make", [cllm.CacheAll, cllm.RecomputeAll, lambda **k: cllm.EveryNth(2, **k), cllm.Sqrt,
                                  lambda **k: cllm.Binomial(2, **k), cllm.Selective])
def test_strategies_are_frozen_data(make):
    one, two = make(), make(micro_batch=2)
    assert one.micro_batch is None and two.micro_batch == 2
    assert make() == one != two and hash(make()) == hash(one)
    with pytest.raises((AttributeError, TypeError)):
        one.micro_batch = 3


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["info", "--help"]], ids=" ".join)
def test_the_command_has_help(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0 and "Usage" in capsys.readouterr().out


def test_the_process_fails_with_a_reason_and_no_traceback():
    run = subprocess.run([sys.executable, "-m", "cllm", "compare", "--preset", "nonsense"], text=True, capture_output=True,
                         timeout=60, cwd=PACKAGE.parent)
    assert run.returncode == 2 and "Traceback" not in run.stderr and "nonsense" in run.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], ["compare", "--steps", "0"], ["compare", "--preset", "nonsense"],
                                       ["compare", "--strategies", "nonsense"]], ids=" ".join)
def test_the_command_fails_with_a_reason(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (1, 2) and capsys.readouterr().err.strip()


def test_versions_name_what_was_built():
    versions = cllm.versions()
    text = str(versions)
    for word in ("cllm", "numpy"):
        assert word in text.lower()
    assert cllm.__version__ == versions["cllm"]
