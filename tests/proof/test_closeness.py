"""How far gradients are from each other, against NumPy; and the files that a comparison takes them from."""
import numpy as np
import pytest

from cllm.comparison.first_gradients import FirstGradients, gradient_errors, inexact_strategies, write_gradients
from cllm.comparison.job import Job
from cllm.models.gpt import ModelConfig
from cllm.proof.closeness import PIECE, Closeness, closeness

JOB = Job(ModelConfig(13, 2, 16, 2, 24, 9), batch_size=2, seq_len=8, steps=1, threads=1)


def drawn(shape, seed, dtype="float32"):
    """An array of that shape."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("size", [1, 7, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_figures_are_those_of_numpy(size):
    r = drawn(size, 0)
    g = r + 1e-3 * drawn(size, 1)
    found, wide = closeness(r, g), (r.astype(float), g.astype(float))
    assert found.relative_error == pytest.approx(np.linalg.norm(wide[1] - wide[0]) / np.linalg.norm(wide[0]), rel=1e-12)
    assert found.cosine == pytest.approx(wide[0] @ wide[1] / np.linalg.norm(wide[0]) / np.linalg.norm(wide[1]), rel=1e-12)


def test_sums_are_in_float64():
    # In float32, 1 + 2^-24 is 1 and the second square would be lost; the sum of squares here is 1 + 2^20 * 2^-40.
    r = np.full(1 + 2 ** 20, 2.0 ** -20, np.float32)
    r[0] = 1.0
    assert closeness(r, r).reference == 1 + 2.0 ** -20
    assert closeness(r, np.zeros_like(r)).relative_error == 1.0


def test_parts_add_up_to_the_whole():
    r, g = drawn((40, 30), 0), drawn((40, 30), 1)
    parts = closeness(r[:11], g[:11]) + closeness(r[11:], g[11:])
    assert parts.relative_error == pytest.approx(closeness(r, g).relative_error, rel=1e-13)
    assert parts.cosine == pytest.approx(closeness(r, g).cosine, rel=1e-13)


def test_equal_opposite_and_orthogonal():
    r = drawn(50, 0)
    assert closeness(r, r).to_dict() == {"relative_error": 0.0, "cosine": pytest.approx(1.0)}
    assert closeness(r, -r).to_dict() == {"relative_error": pytest.approx(2.0), "cosine": pytest.approx(-1.0)}
    assert closeness(np.array([1.0, 0.0]), np.array([0.0, 1.0])).cosine == 0.0


def test_what_has_no_value_is_none():
    zero, one = np.zeros(3), np.ones(3)
    assert closeness(zero, zero).to_dict() == {"relative_error": 0.0, "cosine": None}
    assert closeness(zero, one).to_dict() == {"relative_error": None, "cosine": None}
    assert closeness(one, zero).to_dict() == {"relative_error": 1.0, "cosine": None}
    assert Closeness().relative_error == 0.0


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        closeness(np.zeros(3), np.zeros(4))


def same(names):
    """Strategies by label, the label being the name."""
    return {name: name for name in names}


def gradients_of(seed, scale=0.0):
    """Gradients of the job's model, made up; `scale` is how far they are from those of scale 0."""
    from cllm.models.architecture import program_of
    shapes = {name: parameter.shape for name, parameter in program_of(JOB.architecture).parameters.items()}
    return {name: drawn(shape, seed) + np.float32(scale) * drawn(shape, seed + 1) for name, shape in shapes.items()}


def test_files_give_the_figures_of_the_arrays(tmp_path):
    exact, close = gradients_of(0), gradients_of(0, 0.01)
    write_gradients(exact, tmp_path / "exact")
    write_gradients(close, tmp_path / "close")
    found = gradient_errors(JOB, tmp_path / "exact", tmp_path / "close")
    assert list(found["by_parameter"]) == sorted(exact)
    for name in exact:
        assert found["by_parameter"][name] == closeness(exact[name], close[name]).to_dict()
    r, g = (np.concatenate([one[name].reshape(-1).astype(float) for name in sorted(one)]) for one in (exact, close))
    assert found["relative_error"] == pytest.approx(np.linalg.norm(g - r) / np.linalg.norm(r), rel=1e-12)
    assert found["cosine"] == pytest.approx(g @ r / np.linalg.norm(g) / np.linalg.norm(r), rel=1e-12)


def test_a_short_file_is_refused(tmp_path):
    exact = gradients_of(0)
    write_gradients(exact, tmp_path / "exact")
    (tmp_path / "close").write_bytes((tmp_path / "exact").read_bytes()[:-4])
    with pytest.raises(ValueError):
        gradient_errors(JOB, tmp_path / "exact", tmp_path / "close")


def test_plans_tell_which_strategies_are_inexact():
    names = ("cache", "bf16", "int8:selective", "budget:1B", "budget:100MB", "recompute")
    assert inexact_strategies(JOB, same(names)) == {"bf16", "int8:selective"}


@pytest.mark.parametrize("order", [("bf16", "cache", "int8", "recompute"), ("cache", "bf16", "int8", "recompute")])
def test_each_inexact_strategy_is_compared_once_and_its_file_deleted(tmp_path, order):
    files, found = FirstGradients(JOB, same(order), tmp_path), {}
    for strategy in order:
        path = files.file_for(strategy)
        assert (path is None) == (strategy == "recompute"), "one exact strategy is enough"
        if path is not None:
            write_gradients(gradients_of(0, {"bf16": 0.01, "int8": 0.1}.get(strategy, 0.0)), path)
            new = files.written(strategy, path)
            assert not set(new) & set(found)
            found.update(new)
        assert files.file_for(strategy) is None, "later rounds write nothing"
    assert set(found) == {"bf16", "int8"} and all(one["reference"] == "cache" for one in found.values())
    assert 0 < found["bf16"]["relative_error"] < found["int8"]["relative_error"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_reference_is_followed_by_the_next_exact_strategy(tmp_path):
    files = FirstGradients(JOB, same(("cache", "bf16", "recompute")), tmp_path)
    files.file_for("cache").write_bytes(b"half a file")  # and then its process died
    for strategy in ("bf16", "recompute"):
        path = files.file_for(strategy)
        write_gradients(gradients_of(0), path)
        found = files.written(strategy, path)
    assert found["bf16"]["reference"] == "recompute" and found["bf16"]["relative_error"] == 0.0


@pytest.mark.parametrize("names", [("cache", "recompute"), ("bf16", "int8")])
def test_nothing_is_written_where_there_is_nothing_to_compare(tmp_path, names):
    files = FirstGradients(JOB, same(names), tmp_path)
    assert [files.file_for(name) for name in names] == [None, None]
