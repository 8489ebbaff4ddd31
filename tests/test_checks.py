"""What users hand in is converted once: NumPy's scalars work wherever Python's do, and leave plain ones behind."""
import dataclasses
import json
import math

import numpy as np
import pytest

import cllm
from cllm import corpus
from cllm.checks import checked_flag, checked_real, checked_size, checked_word
from cllm.comparison.job import Job
from cllm.errors import ConfigError
from cllm.optim.rate import Rate
from cllm.program.workload import Workload
from cllm.sampling import Choice

SIZES = (13, 2, 16, 2, 24, 9)


def plain(value):
    """Whether all that a record holds is Python's own."""
    if dataclasses.is_dataclass(value):
        return all(plain(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, (tuple, list)):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str, range)


@pytest.mark.parametrize("make", [
    lambda: cllm.ModelConfig(*np.array(SIZES, np.int16), dropout=np.float32(0.25), tied=np.bool_(True),
                             norm_eps=np.float64(1e-5), activation=np.str_("relu")),
    lambda: Workload(np.int64(2), np.uint8(9), threads=np.int32(1)),
    lambda: cllm.TrainSettings(steps=np.int64(6), lr=np.float32(1e-3), betas=np.array([0.9, 0.95], np.float32),
                               seed=np.uint64(3), clip=np.int8(1), warmup=np.int64(2), val_fraction=np.float16(0.5),
                               memory_budget=np.int64(10**7)),
    lambda: Rate(np.float32(0.1), np.int64(10), np.int64(2), np.float32(0.01)),
    lambda: Choice(np.float32(0.5), np.int64(3), np.float32(0.5), np.int64(7)),
    lambda: cllm.MemoryBudget(np.float64(6e6), max_grad_error=np.float32(0.5)), lambda: cllm.EveryNth(np.int64(2)),
    lambda: cllm.Binomial(np.int64(2)), lambda: cllm.Tape(np.int64(0)),
    lambda: cllm.Plan((), np.int64(2), np.int64(4)),
    lambda: Job(cllm.ModelConfig(*SIZES), np.int64(2), np.int64(4), np.int64(1))],
    ids=range(11))
def test_records_hold_plain_numbers(make):
    assert plain(make())


def test_numpy_numbers_go_all_the_way(tmp_path):
    """Into a configuration, a plan, an executor, a run and its snapshot, and back."""
    tokens = np.random.default_rng(0).integers(0, 13, 400)
    config = cllm.ModelConfig(tokens.max() + 1, *map(np.int16, SIZES[1:]))
    assert json.loads(json.dumps(config.to_dict())) == {**config.to_dict(), "crystalline": list(config.crystalline)}
    plan = cllm.plan(config, np.int64(2), np.int64(9), cllm.CacheAll(micro_batch=np.int64(1)), num_threads=np.int64(1))
    plan.to_json(tmp_path / "plan.json")
    assert cllm.Plan.from_json(tmp_path / "plan.json") == plan
    settings = dict(batch_size=np.int64(2), seq_len=np.int64(8), steps=np.int64(2), lr=np.float32(1e-3), threads=np.int64(1))
    cllm.Trainer(cllm.GPT(config, seed=np.int64(1)), tokens, tmp_path / "run", **settings).run()
    again = cllm.Trainer(cllm.GPT(config), tokens, tmp_path / "run", resume=True, **{**settings, "steps": np.int64(3)})
    assert again.run().step == 3
    added = cllm.generate(again.model, np.array([1]), np.int64(4), np.float32(1.0), np.int64(3), seed=np.int64(2))
    assert len(added) == 4


def test_a_small_numpy_number_spoils_nothing_for_equal_configurations():
    """Programs are remembered by configuration, and np.int16(64) equals 64."""
    cllm.GPT(cllm.ModelConfig(11, 1, np.int8(64), 2, np.int8(127), np.int8(4)))
    config = cllm.ModelConfig(11, 1, 64, 2, 127, 4)
    tokens = np.zeros((1, 4), int)
    assert math.isfinite(cllm.Executor(cllm.GPT(config), 1, 4, num_threads=1).loss(tokens, tokens))
    assert all(type(n) is int for p in cllm.GPT(config).program.parameters.values() for n in p.shape)


@pytest.mark.parametrize("value", [np.array([1, 2]), np.array([3]), "3", b"3", [3], 2.0, np.float64(2), True, np.bool_(True),
                                   None, 10**400, -1, 1 + 0j], ids=repr)
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ConfigError, match=r"x: must be a whole number from 1 to 16777216; got .* Pass an int"):
        checked_size("x", value)


@pytest.mark.parametrize("value", [np.array([1.0]), "0.5", None, True, np.bool_(False), math.nan, math.inf, -1, 1.0,
                                   10**400, 1j], ids=repr)
def test_what_is_no_number_of_the_interval_is_refused(value):
    with pytest.raises(ConfigError, match=r"x: must be a number in \[0, 1\); got "):
        checked_real("x", value, high=1.0)


def test_ends_of_an_interval():
    assert checked_real("x", 0) == 0.0 and checked_real("x", 1, 0, 1, "(]") == 1.0
    for ends, value in (("(]", 0), ("[)", 1), ("()", 0), ("()", 1)):
        with pytest.raises(ConfigError):
            checked_real("x", value, 0, 1, ends)


@pytest.mark.parametrize("check, value", [(checked_flag, 1), (checked_flag, "yes"), (checked_flag, np.array([True])),
                                          (lambda w, v: checked_word(w, v, ("a", "b")), np.array(["a", "b"])),
                                          (lambda w, v: checked_word(w, v, ("a", "b")), ["a"])], ids=range(5))
def test_flags_and_words(check, value):
    with pytest.raises(ConfigError, match="x: must be "):
        check("x", value)


@pytest.mark.parametrize("limit, nbytes", [("5000000", 5_000_000), ("512M", 512_000_000), ("1TB", 10**12), ("2 TiB", 2**41),
                                           ("1g", 10**9), (6e6, 6_000_000), (np.float32(2**20), 2**20), (np.int64(7), 7)])
def test_limits_as_people_write_them(limit, nbytes):
    assert cllm.MemoryBudget(limit) == cllm.MemoryBudget(nbytes)


@pytest.mark.parametrize("limit", [1.5, "1.5", "MB", "1 ZB", 0, -5, True, math.nan, math.inf, np.array([5, 6]), None, [], ""],
                         ids=repr)
def test_what_is_no_limit_is_refused(limit):
    with pytest.raises(ConfigError, match="must be a number of bytes, a whole one, a size such as"):
        cllm.MemoryBudget(limit)


def test_a_long_argument_is_shown_short():
    with pytest.raises(ConfigError) as caught:
        checked_size("x", "9" * 100_000)
    assert len(str(caught.value)) < 300
    with pytest.raises(ConfigError, match="too many digits"):
        checked_size("x", 10**5000)


@pytest.mark.parametrize("seed", [2**31, np.uint64(2**40)])
def test_large_seeds(seed):
    assert corpus.batch(np.arange(50), np.int64(2), np.int64(4), np.int64(1), seed)[0].shape == (2, 4)
    assert cllm.TrainSettings(seed=seed).seed == seed == Choice(seed=seed).seed
