"""Prove a wheel where there is nothing else: an environment of its own, an empty folder, and no compiler to be found.

    python tools/check_wheel.py [WHEEL] [--beside MODULE ...]

Installs the wheel and runs the first lines of Python in the README, once alone, then in one process with each module that
is named and installed here (NumPy is always there): they bring threads of their own. Without WHEEL, what is installed runs.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
# Work for another library's threads before and after ours; a second runtime of OpenMP in the process is what could go wrong.
BESIDE = {
    "sklearn": "import sklearn.cluster, numpy as np\n"
               "def beside():\n"
               "    x = np.random.default_rng(0).random((4000, 8))\n"
               "    return float(sklearn.cluster.KMeans(8, n_init=1, random_state=0).fit(x).inertia_)\n",
    "torch": "import torch\n"
             "def beside():\n"
             "    x = torch.arange(1000000, dtype=torch.float32).reshape(1000, 1000) / 1e6\n"
             "    return float((x @ x).sum())\n",
}
FACTS = """
facts = cllm.versions()
assert facts["openmp"] and facts["levels"], facts
print(facts["level"], "because", facts["level_because"], "|", facts["waiting"], "|", "loss", loss)
"""


def readme_lines():
    """The README's first block of Python."""
    return re.search(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]


def programs(modules):
    """Programs by what they are, each to be run in a process of its own."""
    lines = readme_lines() + FACTS
    yield "alone", lines
    for name in modules:
        for first in (False, True):
            before = BESIDE[name] + "was = beside()\n" if first else ""
            after = ("" if first else BESIDE[name] + "was = beside()\n") + "assert abs(beside() / was - 1) < 1e-3\n"
            yield f"{'after' if first else 'before'} {name}", before + lines + after


def environment():
    """Variables of a process that finds no compiler, no checkout and no settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLLM_", "PYTHON", "OMP_", "GOMP_"))}
    return {**kept, "PATH": ""}


def run(python, modules):
    """Run every program by the interpreter `python`, each in an empty folder."""
    for name, program in programs(modules):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([python, "-I", "-c", program], cwd=folder, env=environment(), capture_output=True, text=True)
            left = os.listdir(folder)
        print(f"{name}: {done.stdout.strip() or 'failed'}")
        if done.returncode or left:
            sys.exit(done.stderr or f"left behind: {left}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", nargs="?", type=Path)
    parser.add_argument("--beside", nargs="*", default=[], choices=sorted(BESIDE), help="installed beside the wheel first")
    asked = parser.parse_args()
    if asked.wheel is None:
        run(sys.executable, asked.beside)
        return
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        names = {"sklearn": "scikit-learn"}
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", asked.wheel.resolve(),
                        *(names.get(name, name) for name in asked.beside)], check=True, cwd=folder)
        run(python, asked.beside)


if __name__ == "__main__":
    main()
