"""What judges the experiments on fewer bits, on leaks and on disks: verdicts that can fail, and a run that repeats."""
import argparse
import json

import numpy as np
import pytest
from profiling_scripts import FOLDER, IN_A_CHECKOUT, script


def row(name, *curves):
    return {"name": name, "runs": [{"losses": [], "evaluations": list(enumerate(curve, 1))} for curve in curves]}


def test_a_curve_is_judged_by_the_exact_runs_of_its_seeds_and_their_spread():
    exact = row("exact", [3.0, 2.0], [3.2, 2.1], [3.1, 2.05])  # spreads 0.2 and 0.1
    near = row("near", [3.05, 2.03], [3.2, 2.07], [3.1, 2.05])
    early = row("early", [3.3, 2.0], [3.4, 2.1], [3.25, 2.05])  # 0.65 in sum apart at the first evaluation
    late = row("late", [3.0, 1.9], [3.2, 1.98], [3.1, 1.94])  # 0.33 in sum apart at the last, though two lie near the others
    rows = [exact, near, early, late]
    script("jobs.curves").judge(rows)
    assert [one["within"] for one in rows] == [True, True, False, False]
    assert [one["mean_share"] for one in rows] == pytest.approx([0, 0.05 / 3 / 0.2, 0.65 / 3 / 0.2, 0.33 / 3 / 0.1])
    assert [one["largest_share"] for one in rows] == pytest.approx([0, 0.3, 1.5, 1.2])
    assert near["differences"] == pytest.approx([0.03, -0.03, 0.0])


def test_the_same_run_gives_the_same_curve_and_other_formats_another():
    curves = script("jobs.curves")
    job = curves.Job(curves.QUICK, steps=4, batch_size=2, lr=2e-3, threads=1, evaluations=2)
    copies = (None, None, lambda matrix: matrix, script("mixed_precision_loss").rounded)
    runs = [curves.trained(job, curves.Variant(working_copy=copy), 1) for copy in copies]
    assert runs[0] == runs[1] == runs[2]
    assert runs[3]["losses"][0] != runs[0]["losses"][0], "forward sees the working copy from the first step on"
    assert [step for step, _ in runs[0]["evaluations"]] == [2, 4]


def test_runs_that_ended_are_not_repeated(tmp_path, monkeypatch):
    curves, done = script("jobs.curves"), []
    job = curves.Job(curves.QUICK, steps=2, batch_size=2, lr=2e-3, threads=1, evaluations=2)
    variants = {"exact": curves.Variant(), "narrow": curves.Variant(compute="bfloat16")}
    asked = argparse.Namespace(seeds=2, out=tmp_path / "curves.json")

    def trained(job, variant, seed):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((variant.compute, seed))
        return {"losses": [], "evaluations": [[1, 3.0 + seed + len(done) / 100]]}

    monkeypatch.setattr(curves, "trained", trained)
    with pytest.raises(KeyboardInterrupt):
        curves.compare("curves", job, variants, asked)
    first, done[:] = list(done), []
    rows = curves.compare("curves", job, variants, asked)
    assert first == [("float32", 0), ("float32", 1), ("bfloat16", 0)] and done == [("bfloat16", 1)]
    assert rows[0]["last"] == [3.01, 4.02] and rows[1]["last"] == [3.03, 4.01]


def test_attention_whose_products_are_narrow_is_attention_but_for_rounding(monkeypatch):
    import cllm

    curves, narrow = script("jobs.curves"), script("jobs.narrow_attention")
    feeds = {name: np.random.default_rng(0).integers(0, 256, (2, 32)) for name in ("tokens", "targets")}

    def gradients(config):
        model = cllm.GPT(config(**curves.QUICK), seed=3)
        cllm.Executor(model, 2, 32, num_threads=1).loss_and_grad(**feeds)
        return model.gradients

    plain, rounds = gradients(cllm.ModelConfig), gradients(narrow.NarrowConfig)
    monkeypatch.setattr(narrow, "rounded", lambda x: x)
    exact = gradients(narrow.NarrowConfig)
    for name, right in plain.items():
        scale = np.abs(right).max()
        assert np.abs(exact[name] - right).max() < 1e-5 * scale + 1e-9, name
        assert np.abs(rounds[name] - right).max() < 0.02 * scale + 1e-9, name
    assert any((rounds[name] != exact[name]).any() for name in plain)


def test_products_in_fewer_bits_run(monkeypatch):
    mixed = script("mixed_precision")
    monkeypatch.setattr(mixed, "PRODUCTS", {"mlp.fc1": (8, 4, 6)})
    monkeypatch.setattr(mixed, "CONTESTANTS", {"cllm": mixed.CONTESTANTS["cllm"]})
    found, = mixed.products(argparse.Namespace(threads=1, rounds=1, peer_python=None))
    assert set(found["rate"]) == {f"cllm {case}" for case in ("product", "product_in_bfloat16", "product_of_copy")}
    assert min(found["rate"].values()) > 0
    with script("peers.process").Peer("peers/cllm/products.py", 1) as peer:
        assert mixed.prepared(peer, "round_weights", (1000,), 1)["digest"] > 0


def test_growth_is_told():
    judged = script("leaks").judged
    held = {"step": 0, "resident": 50 << 20, "python": 1000, "threads": 3, "descriptors": 9, "files": 0}
    assert judged([held, {**held, "resident": held["resident"] + 4096}])["holds"]
    for name, more in (("resident", 3 << 20), ("python", 3 << 20), ("threads", 1), ("descriptors", 1), ("files", 1)):
        assert not judged([held, {**held, name: held[name] + more}])["holds"]


def test_disks_of_strategies_that_spill(tmp_path):
    assert script("compare").spill_directories(["cache", "spill:a/b@2", "recompute", "spill:c", "spill:a/b"]) == ["a/b", "c"]
    disk = script("disk")
    found = disk.bandwidth(str(tmp_path), disk.CHUNK_BYTES)
    assert set(found) == {"cached_write", "device_write", "cached_read", "device_read"} and min(found.values()) > 0
    assert "cached write" in disk.in_words(found)
    assert not list(tmp_path.iterdir())


@IN_A_CHECKOUT
def test_views_of_stored_results():
    """Every result that is stored has its views, whole."""
    views = {**script("views.precision").VIEWS, **script("views.losses").VIEWS}
    stored = [json.loads(path.read_text()) for path in (FOLDER / "results").glob("*.json")]
    made = 0
    for data in stored:
        for (name, view), make in views.items():
            if data.get("script") == name and (view != "disks" or data.get("disks")):
                header, rows = make(data)
                assert rows and all(len(one) == len(header) for one in rows), (name, view)
                made += 1
    assert made
