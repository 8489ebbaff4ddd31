"""What the tests share: models with drawn weights, the lossless strategies, and a few steps of training to compare.

A test that takes `lossless` runs once for each lossless strategy; `oracle` and its comparisons are imported by name.
"""
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import oracle`, in whatever mode pytest imports

import longer
import oracle

# Three threads on two cores: waiting ones must not spin. Read when cllm is first imported, which no line above does.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Processes that tests begin need not compile the package anew, whatever the one that began the tests was told.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Measurements of this machine are neither read nor changed: predicted seconds are those of declared work.
_MEASURED = tempfile.TemporaryDirectory()
os.environ["CLLM_CACHE_DIR"] = _MEASURED.name
hypothesis.settings.register_profile("cllm", deadline=None, derandomize=True, database=None, max_examples=40,
                                     suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("cllm")


def pytest_addoption(parser):
    parser.addoption("--whole", action="store_true", help="the laws over the whole product of families, strategies, cuts "
                     "and dtypes, not over pairs alone; and the tests that are marked as whole")
    parser.addoption("--turn", type=int, help="of the builds of make check-builds, the one whose turn it is at this count")


def pytest_configure(config):
    longer.is_asked_for = config.getoption("whole")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("whole"):
        left_out = [item for item in items if item.get_closest_marker("whole")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("whole")]


def pytest_generate_tests(metafunc):
    if "lossless" in metafunc.fixturenames:
        from families import LOSSLESS
        metafunc.parametrize("lossless", LOSSLESS.values(), ids=LOSSLESS.keys())


@pytest.fixture(scope="session", autouse=True)
def short_calibrations():
    """Where a budget decides, this machine is measured: no test asks how well."""
    from cllm import calibrate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "TURN_SECONDS", 0.002)
        patch.setattr(calibrate, "DISK_PROBE_BYTES", 1 << 16)
        yield


@pytest.fixture(scope="session")
def lossless_strategies():
    """Name -> strategy, for tests that draw one themselves; "per block" needs two blocks or more."""
    from families import LOSSLESS
    return LOSSLESS


@pytest.fixture(scope="session")
def new_model():
    """Make a model whose weights are drawn wide, so that every term of the mathematics counts."""
    import cllm

    def make(config, dtype="float64", seed=0, scale=0.4):
        model = cllm.GPT(cllm.ModelConfig(**config), seed=0, dtype=dtype)
        for name, value in oracle.draw_parameters(config, seed, scale).items():
            model.parameters[name][...] = value
        return model

    return make


@pytest.fixture(scope="session")
def copies():
    """Copy a mapping of arrays."""
    return lambda arrays: {name: array.copy() for name, array in arrays.items()}


@pytest.fixture(scope="session")
def train_a_little(new_model, copies):
    """A few clipped AdamW steps; returns losses, the gradients of each step, and the weights at the end."""
    import cllm

    def train(config, strategy, B, T, dtype="float32", num_threads=1, micro_batch=None, steps=2, seed=5):
        model = new_model(config, dtype)
        ex = cllm.Executor(model, batch_size=B, seq_len=T, num_threads=num_threads, seed=seed,
                           strategy=dataclasses.replace(strategy, micro_batch=micro_batch))
        opt = cllm.AdamW(model, lr=1e-2)
        losses, gradients = [], []
        for step in range(steps):
            model.zero_grad()
            losses.append(ex.loss_and_grad(*oracle.draw_batch(config, B, T, seed=step)))
            gradients.append(copies(model.gradients))
            losses.append(cllm.clip_grad_norm(model, 0.5))
            opt.step()
        return {"losses": losses, "gradients": gradients, "weights": copies(model.parameters)}

    return train
