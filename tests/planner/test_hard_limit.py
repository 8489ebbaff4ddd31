"""Under the system's own limit: a process allowed what it has plus what the plan says trains; with less it does not."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from longer import whole

import cllm
from cllm.comparison.resident import resident_bytes

pytestmark = pytest.mark.skipif(resident_bytes() is None, reason="only Linux counts private memory against RLIMIT_DATA")

# A model of over 100 MB in all. The warm-up loads every library and starts every thread; what the process has then is its
# base. argv: strategy, share of the plan's total bytes to be allowed beside the base, bytes of margin.
CHILD = """
import json, resource, sys
from pathlib import Path
import numpy as np
import cllm
from cllm.comparison.resident import forget_peak, peak_resident_bytes, resident_bytes

def data_bytes():
    return 1024 * int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmData")).split()[1])

def train(config, batch, time, strategy, steps):
    model = cllm.GPT(config, seed=0)
    ex = cllm.Executor(model, batch, time, strategy=strategy, num_threads=2)
    opt = cllm.AdamW(model, lr=1e-3)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch, time + 1))
    for _ in range(steps):
        model.zero_grad()
        loss = ex.loss_and_grad(tokens[:, :-1], tokens[:, 1:])
        cllm.clip_grad_norm(model, 1.0)
        opt.step()
    assert ex.high_water_bytes == ex.memory.arena_bytes
    return loss

strategy, share, margin = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
train(cllm.ModelConfig.preset("tiny"), 2, 16, "cache", 1)
config = cllm.ModelConfig(256, 4, 384, 6, 1536, 128)
total = cllm.plan(config, 4, 128, strategy, num_threads=2).total_bytes
base = resident_bytes()
resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + int(total * share) + margin, resource.RLIM_INFINITY))
before = data_bytes()
try:
    loss = train(config, 4, 128, strategy, 3)
    answer = {"loss": loss, "total": total, "growth": peak_resident_bytes() - base}
except MemoryError as error:
    answer = {"refused": type(error).__name__, "says": str(error), "made": data_bytes() - before}
print(json.dumps(answer))
"""
MARGIN = 4 << 20


def run(strategy, share=1.0, margin=MARGIN):
    env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parent.parent), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD, strategy, str(share), str(margin)], env=env, text=True,
                          capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("strategy", ["cache", whole("recompute"), "budget:140MB"])
def test_a_plan_runs_in_the_bytes_it_names(strategy):
    answer = run(strategy, 1.01)
    assert answer.get("loss"), answer
    assert answer["total"] > 100_000_000
    assert abs(answer["growth"] - answer["total"]) <= 0.01 * answer["total"] + (4 << 20)


def test_with_a_tenth_less_the_system_refuses():
    """So the limit bites: what is shown above could fail."""
    assert run("cache", 0.9, 0)["refused"]
