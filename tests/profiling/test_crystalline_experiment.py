"""profiling/crystalline.py: what it compares is comparable, and it says no more than its seeds do."""
import json
import subprocess
import sys

import pytest
from profiling_scripts import FOLDER, script

import cllm


@pytest.fixture(scope="module")
def experiment():
    return script("crystalline")


def test_every_variant_has_as_many_parameters(experiment):
    target = experiment.parameters_of(cllm.ModelConfig(**experiment.SIZES))
    for name, changes in experiment.VARIANTS.items():
        found = experiment.parameters_of(experiment.matched(experiment.SIZES, changes, target))
        assert abs(found - target) <= 0.001 * target, name


def test_every_choice_of_the_documents_is_a_variant(experiment):
    from cllm.models.gpt import CHOICES, CRYSTALLINE
    changes = list(experiment.VARIANTS.values())
    assert {c.get("positions", "learned") for c in changes} == set(CHOICES["positions"])
    assert {c.get("qkv", "full") for c in changes} == set(CHOICES["qkv"])
    assert {(part,) for part in CRYSTALLINE} <= {c.get("crystalline") for c in changes}


@pytest.mark.parametrize("differences, says", [((-0.1, -0.2), "helps"), ((0.1, 0.2), "harms"), ((-0.5, 0.01), "none"),
                                               ((0.0, 0.1), "none")])
def test_a_difference_is_one_only_with_one_sign(experiment, differences, says):
    assert experiment.verdict(list(differences)) == says


def test_it_runs_and_is_repeatable(tmp_path, experiment, monkeypatch):
    options = ["--quick", "--steps=3", "--seeds=1", "--variants=plain,crystalline", f"--out={tmp_path / 'found.json'}"]
    subprocess.run([sys.executable, str(FOLDER / "crystalline.py"), *options], check=True, capture_output=True)
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    monkeypatch.setattr(sys, "argv", ["crystalline.py", *options])
    for row in rows:  # in another process
        assert row["losses"] == [experiment.trained(cllm.ModelConfig(**row["config"]), experiment._arguments(), 0)]
    assert len(rows) == 2 and rows[0]["losses"] != rows[1]["losses"]
