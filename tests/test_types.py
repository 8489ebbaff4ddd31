"""What a reader's tools see: stubs of the compiled module, whole signatures of public names, things that say what they are."""
import ast
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cllm
from cllm import _kernels

ROOT = Path(__file__).parents[1]
STUB = ROOT / "cllm/_kernels.pyi"


def test_stubs_are_what_the_sources_declare():
    done = subprocess.run([sys.executable, "tools/make_stubs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def arguments(function):
    """Names of arguments that the compiled function takes: those that may be given by place, and those by name alone."""
    code = next(iter(function.__signatures__.values()), function).__code__ if hasattr(function, "__signatures__") else \
        function.__code__
    return code.co_varnames[:code.co_argcount], code.co_varnames[code.co_argcount:][:code.co_kwonlyargcount]


def test_stubs_are_what_the_module_has():
    body = ast.parse(STUB.read_text()).body
    stubs = {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    constants = {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    module = {name for name in dir(_kernels) if not name.startswith("_") and not name.endswith("Error")}
    assert stubs.keys() | constants == module
    for name, node in stubs.items():
        if isinstance(node, ast.FunctionDef):
            ours = tuple(a.arg for a in node.args.args), tuple(a.arg for a in node.args.kwonlyargs)
            assert ours == arguments(getattr(_kernels, name)), name
        else:
            methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            assert not [method for method in methods if not hasattr(getattr(_kernels, name), method)]


def public_functions():
    """(name, function) for every public function, and every public method of a public class, where it is defined."""
    for name in cllm.__all__:
        thing = getattr(cllm, name)
        if not inspect.isclass(thing):
            yield name, thing
            continue
        for method, member in vars(thing).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")) \
                    and function.__qualname__ == f"{thing.__qualname__}.{method}":  # not what a dataclass writes
                yield f"{name}.{method}", function


def test_every_public_signature_is_whole():
    for name, function in public_functions():
        signature = inspect.signature(function)
        bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
        returns = signature.return_annotation is not inspect.Signature.empty or name.endswith("__init__")
        assert not bare and returns, f"{name} lacks types of {bare or 'what it returns'}"


def test_things_print_as_what_they_are(tmp_path):
    model = cllm.GPT(cllm.ModelConfig(vocab_size=32, n_layers=1, d_model=16, n_heads=2, d_ff=32, max_seq_len=16), seed=0)
    executor = cllm.Executor(model, 2, 8, strategy="recompute", num_threads=1)
    (tmp_path / "text").write_bytes(b"It is a truth universally acknowledged.\n" * 30)
    trainer = cllm.Trainer(cllm.GPT(cllm.ModelConfig(256, 1, 16, 2, 32, 16), seed=1), tmp_path / "text", steps=3, batch_size=2,
                           seq_len=8, threads=1)
    for thing, words in ((model, "GPT.*parameters"), (executor, "2 x 8"), (executor.plan, "Plan.*arena_bytes="),
                         (trainer, "step 0 of 3")):
        assert re.search(words, repr(thing)) and " at 0x" not in repr(thing), repr(thing)


@pytest.mark.skipif(shutil.which("mypy", path=Path(sys.executable).parent) is None, reason="needs the extra types")
def test_a_typed_program_of_a_user_passes_mypy_strict():
    program = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "tests/typed_program.py"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
