"""What makes and proves wheels: the lines that are run, the licences that go with it, what is refused."""
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cllm import _build_info
from cllm.checks import installing

ROOT = Path(__file__).parents[1]


def script(name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check():
    return script("check_wheel")


def test_the_readmes_first_lines_are_what_a_wheel_is_proved_by(check):
    lines = check.readme_lines()
    assert "import cllm" in lines and "loss = ex.loss_and_grad(" in lines and "MemoryBudget" in lines


def test_what_is_installed_here_passes_where_there_is_no_compiler(check, capsys, monkeypatch):
    monkeypatch.setattr(check, "environment", lambda: {"PATH": "", "PYTHONPATH": str(ROOT)})
    monkeypatch.setattr(check.subprocess, "run", without_isolation(check.subprocess.run))
    check.run(sys.executable, [])
    assert capsys.readouterr().out.startswith("alone: ")


def without_isolation(run):
    """A checkout is found by PYTHONPATH, which an isolated interpreter does not read."""
    return lambda command, **named: run([part for part in command if part != "-I"], **named)


def test_a_wheel_that_is_named_from_here_is_found_from_the_empty_folder(check, monkeypatch, tmp_path):
    installed = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.whl").touch()
    monkeypatch.setattr(check.venv, "create", lambda folder, with_pip: None)
    monkeypatch.setattr(check, "run", lambda python, modules: None)
    monkeypatch.setattr(check.subprocess, "run", lambda command, check, cwd: installed.append((command, cwd)))
    monkeypatch.setattr(sys, "argv", ["check_wheel.py", "own.whl", "--beside", "sklearn"])
    check.main()
    (command, cwd), = installed
    *_, wheel, beside = command
    assert Path(cwd, wheel).exists() and Path(cwd) != tmp_path and beside == "scikit-learn"


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "open('left', 'w').close()"])
def test_a_program_that_fails_or_leaves_files_fails_the_proof(check, program, monkeypatch):
    monkeypatch.setattr(check, "programs", lambda modules: [("bad", program)])
    with pytest.raises(SystemExit):
        check.run(sys.executable, [])


def test_every_library_is_tried_before_and_after_ours(check):
    assert [name for name, _ in check.programs(["torch"])] == ["alone", "before torch", "after torch"]


def test_the_licence_of_what_is_bundled_is_whole():
    text = (ROOT / "tools/licenses/LICENSE.libgomp.txt").read_text()
    assert "GCC RUNTIME LIBRARY EXCEPTION" in text and "TERMS AND CONDITIONS" in text and "END OF TERMS AND CONDITIONS" in text


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_that_looks_where_others_lie_is_refused(tmp_path):
    pytest.importorskip("elftools")
    pytest.importorskip("wheel.wheelfile")
    repair = script("repair_wheel")
    for path, refused in (("/opt/lib", True), ("$ORIGIN/../libs", False)):
        library = tmp_path / "one.so"
        subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", library, f"-Wl,-rpath,{path}"], check=True)
        if refused:
            with pytest.raises(SystemExit, match=r"must look for libraries beside itself; got \['/opt/lib'\]"):
                repair.refuse_paths_of_this_machine(library)
        else:
            repair.refuse_paths_of_this_machine(library)


def test_the_version_that_is_cited_is_this_one():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    headings = re.findall(r"^## \[(.*)\]$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited[1] == _build_info.VERSION == headings[1] and headings[0] == "Unreleased"
    assert f"Version {_build_info.VERSION}:" in (ROOT / "README.md").read_text()


def test_the_distributions_name_and_version_are_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (_build_info.DISTRIBUTION, _build_info.VERSION) == (project["name"], project["version"])
    assert installing("io") == f"Install it with: pip install '{project['name']}[io]'."
    named = [path for path in (ROOT / "cllm").rglob("*.py") if project["name"] in path.read_text()]
    assert [path.name for path in named if path.name != "_build_info.py"] == []
