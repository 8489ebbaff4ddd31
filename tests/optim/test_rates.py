"""Speeds as pure functions of the step."""
import math

import pytest

from cllm.errors import ConfigError
from cllm.optim.rate import Rate


def test_warmup_and_cosine_are_those_of_the_model():
    """lr (step+1)/warmup while step < warmup, then min_lr + (lr - min_lr)(1 + cos(pi t))/2."""
    rate = Rate(1e-3, total=100, warmup=10, min_lr=1e-4)
    for step in range(150):
        t = min(1, (step - 10) / max(1, 100 - 10))
        expected = 1e-3 * (step + 1) / 10 if step < 10 else 1e-4 + 9e-4 * (1 + math.cos(math.pi * t)) / 2
        assert rate(step) == pytest.approx(expected, rel=1e-12)
    assert rate(9) == rate(10) == 1e-3 and rate(100) == rate(10**6) == 1e-4


def test_linear_and_constant():
    linear = Rate(1.0, total=20, warmup=10, min_lr=0.5, shape="linear")
    assert [linear(step) for step in (0, 9, 10, 15, 20, 99)] == [0.1, 1.0, 1.0, 0.75, 0.5, 0.5]
    constant = Rate(1.0, total=20, warmup=2, shape="constant")
    assert [constant(step) for step in (0, 1, 2, 19, 99)] == [0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("total, warmup", [(0, 0), (1, 0), (1, 1), (5, 5), (5, 9)])
def test_the_rate_stays_between_floor_and_top(shape, total, warmup):
    rate = Rate(1.0, total, warmup, 0.25, shape)
    for step in range(20):
        assert 0 < rate(step) <= 1.0 and (step < warmup or rate(step) >= 0.25)


def test_a_rate_is_frozen_data():
    assert Rate(1e-3, 10) == Rate(1e-3, 10) and hash(Rate(1e-3, 10)) == hash(Rate(1e-3, 10))
    with pytest.raises((AttributeError, TypeError)):
        Rate(1e-3, 10).lr = 1


@pytest.mark.parametrize("arguments", [dict(lr=-1), dict(lr=math.nan), dict(lr=math.inf), dict(lr="1"),
                                       dict(min_lr=2.0), dict(min_lr=-0.1), dict(total=-1), dict(total=1.5),
                                       dict(warmup=-1), dict(shape="exponential")], ids=str)
def test_bad_settings_are_refused(arguments):
    with pytest.raises(ConfigError, match=rf"Rate\({next(iter(arguments))}=\.\.\.\)"):
        Rate(**{"lr": 1e-3, "total": 10, **arguments})
