"""One strategy in a fresh process: ``python -m cllm.comparison.worker`` trains, measures, and answers in JSON lines.

It reads one JSON object from standard input, ``{"path": folders to import from, "job": parcel, "strategy": parcel,
"gradients": path or null}`` (see `parcel`), and writes to standard output ``{"step": k}`` after every step, then
``{"result": {...}}`` or ``{"error": text}``. Classes of the user are loaded from their files (see `cllm.locate`).
"""

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from cllm.comparison.data import batches_of
from cllm.comparison.description import describe_plan, describe_timeline
from cllm.comparison.first_gradients import write_gradients
from cllm.comparison.job import Job
from cllm.comparison.parcel import unpack
from cllm.comparison.resident import forget_peak, peak_resident_bytes, resident_bytes
from cllm.errors import CllmError
from cllm.executor.executor import Executor
from cllm.models.choosing import model_in
from cllm.models.families import model_of
from cllm.models.model import Model
from cllm.optim import AdamW, clip_grad_norm

MAX_NORM = 1.0


def train(job: Job, strategy, tell: Callable[[int], None], gradients: Path | None = None) -> dict:
    """Train `job` for 1 + steps steps under a strategy, plan or name; `tell` hears of every step done.

    The first step is not timed: it touches every page, and its gradients are digested, and written to the file
    `gradients` where one is named. The peak is of the steps after it. A step is: zero the gradients, loss and gradients,
    clip, AdamW.

    Returns
    -------
    dict
        What `summary` makes rows of: figures of this run by the names of the report.
    """
    batch_of_step = batches_of(job)
    rss_start = resident_bytes()
    model = (model_of(job.architecture, seed=job.seed, dtype=job.dtype) if job.weights is None
             else model_in(job.weights, job.dtype, job.architecture))
    model.compute = job.compute
    executor = Executor(model, batch_size=job.batch_size, seq_len=job.seq_len, strategy=strategy, optimizer="adamw",
                        num_threads=job.threads, seed=job.seed)
    optimizer = AdamW(model, lr=job.lr)
    losses, seconds, digest, peak_is_ours = [], [], "", False
    for step in range(1 + job.steps):
        feeds = batch_of_step(step)
        if step == 1:
            peak_is_ours = forget_peak()
        begin = perf_counter()
        model.zero_grad()
        losses.append(float(executor.loss_and_grad(**feeds)))
        if step == 0:
            digest = gradient_digest(model)
            if gradients is not None:
                write_gradients(model.gradients, gradients)
        clip_grad_norm(model, MAX_NORM)
        optimizer.step()
        seconds.append(perf_counter() - begin)
        tell(step)
    return {
        "exact": executor.plan.exact,
        "step_seconds": seconds[1:],
        "predicted_step_seconds": executor.plan.predicted_seconds,
        "arena_bytes": int(executor.memory.arena_bytes),
        "high_water_bytes": int(executor.high_water_bytes),
        "total_bytes": int(executor.memory.total_bytes),
        "rss_peak_bytes": peak_resident_bytes() if peak_is_ours else None,
        "rss_start_bytes": rss_start,
        "losses": losses,
        "grad_sha256": digest,
        "plan": describe_plan(executor.plan, executor.memory, model.program),
        "timeline": describe_timeline(executor.memory, model.program),
    }


def gradient_digest(model: Model) -> str:
    """SHA-256 over the bytes of all gradients, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(model.gradients):
        digest.update(memoryview(model.gradients[name]).cast("B"))
    return digest.hexdigest()


def main() -> None:
    """Answer the one request on standard input."""
    # Whatever prints by mistake must not get between the lines of the answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(message: dict) -> None:
        answers.write(json.dumps(message) + "\n")

    request = json.load(sys.stdin)
    sys.path[:] = [*request["path"], *(folder for folder in sys.path if folder not in request["path"])]
    try:
        gradients = None if request["gradients"] is None else Path(request["gradients"])
        job, strategy = unpack(request["job"]), unpack(request["strategy"])
        answer({"result": train(job, strategy, lambda k: answer({"step": k}), gradients)})
    except CllmError as error:
        answer({"error": str(error)})
    except MemoryError:
        answer({"error": "out of memory. Choose a strategy that keeps less, or a smaller micro-batch or model."})
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
