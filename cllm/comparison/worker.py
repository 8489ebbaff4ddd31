"""One strategy in a fresh process: ``python -m cllm.comparison.worker`` trains, measures, and answers in JSON lines.

It reads one line of JSON from standard input, ``{"path": folders to import from, "job": parcel, "strategy": parcel,
"gradients": path or null}`` (see `parcel`), and writes to standard output ``{"step": k}`` after every step, then
``{"result": {...}}`` or ``{"error": text}``. Classes of the user are loaded from their files (see `cllm.locate`).

Several that a launcher of MPI has started share the groups of each batch; the first of them reads and answers.
"""

import gc
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from cllm.comparison.data import batches_of
from cllm.comparison.description import describe_plan, describe_timeline
from cllm.comparison.first_gradients import write_gradients
from cllm.comparison.job import Job
from cllm.comparison.parcel import unpack
from cllm.comparison.resident import forget_peak, peak_resident_bytes, resident_bytes
from cllm.comparison.together import in_all
from cllm.distributed import launched
from cllm.errors import CllmError
from cllm.executor.executor import Executor
from cllm.executor.groups import Team
from cllm.models.choosing import model_in
from cllm.models.families import model_of
from cllm.models.model import Model
from cllm.optim import AdamW, clip_grad_norm

MAX_NORM = 1.0


def train(job: Job, strategy, tell: Callable[[int], None], gradients: Path | None = None, team: Team | None = None) -> dict:
    """Train `job` for 1 + steps steps under a strategy, plan or name; `tell` hears of every step done.

    The first step is not timed: it touches every page, and its gradients are digested, and written to the file
    `gradients` where one is named. The peak is of the steps after it. A step is: zero the gradients, loss and gradients,
    clip, AdamW. Several processes have parts of the gradients alone: they take the first step's again, whole, when all is
    measured.

    Returns
    -------
    dict
        What `summary` makes rows of: figures of this run by the names of the report; of all processes, where there are some.
    """
    if team is None:
        return _measured(job, strategy, tell, lambda model: _digested(model, gradients))
    figures = in_all(team, _measured(job, strategy, tell, None, team), job.threads)
    gc.collect()  # two models at once would be more than was planned
    model, executor = _made(job, strategy, team)
    executor.loss_and_grad(**batches_of(job)(0))
    return {**figures, "grad_sha256": _digested(model, gradients if team.rank == 0 else None)}


def _measured(job: Job, strategy, tell: Callable[[int], None], look: Callable[[Model], str] | None,
              team: Team | None = None) -> dict:
    """Figures of this process; `look` returns the digest of the first gradients, and is None where steps are whole ones."""
    batch_of_step = batches_of(job)
    rss_start = resident_bytes()
    model, executor = _made(job, strategy, team)
    optimizer = AdamW(model, lr=job.lr)
    losses, seconds, own, digest, peak_is_ours, received = [], [], [], "", False, 0
    for step in range(1 + job.steps):
        feeds = batch_of_step(step)
        if step == 1:
            peak_is_ours, received = forget_peak(), executor.received_bytes
        begin = perf_counter()
        if look is None:
            losses.append(executor.train_step(**feeds, optimizer=optimizer, clip_norm=MAX_NORM))
        else:
            model.zero_grad()
            losses.append(float(executor.loss_and_grad(**feeds)))
            if step == 0:
                digest = look(model)
            clip_grad_norm(model, MAX_NORM)
            optimizer.step()
        seconds.append(perf_counter() - begin)
        own.append(executor.process_seconds)
        tell(step)
    return {
        "exact": executor.plan.exact,
        "step_seconds": seconds[1:],
        "process_seconds": [median(of_one) for of_one in zip(*own[1:], strict=True)],
        "message_bytes": (executor.received_bytes - received) // job.steps,
        "predicted_step_seconds": executor.plan.predicted_seconds,
        "arena_bytes": int(executor.memory.arena_bytes),
        "high_water_bytes": int(executor.high_water_bytes),
        "total_bytes": int(executor.memory.total_bytes),
        "rss_peak_bytes": peak_resident_bytes() if peak_is_ours else None,
        "rss_start_bytes": rss_start,
        "crowded": [],
        "losses": losses,
        "grad_sha256": digest,
        "plan": describe_plan(executor.plan, executor.memory, model.program),
        "timeline": describe_timeline(executor.memory, model.program),
    }


def _made(job: Job, strategy, team: Team | None) -> tuple[Model, Executor]:
    model = (model_of(job.architecture, seed=job.seed, dtype=job.dtype) if job.weights is None
             else model_in(job.weights, job.dtype, job.architecture))
    model.compute = job.compute
    return model, Executor(model, batch_size=job.batch_size, seq_len=job.seq_len, strategy=strategy, optimizer="adamw",
                           num_threads=job.threads, seed=job.seed, groups=job.groups, team=team)


def _digested(model: Model, gradients: Path | None) -> str:
    """Digest of the gradients, which are written to a file where one is named."""
    if gradients is not None:
        write_gradients(model.gradients, gradients)
    return gradient_digest(model)


def gradient_digest(model: Model) -> str:
    """SHA-256 over the bytes of all gradients, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(model.gradients):
        digest.update(memoryview(model.gradients[name]).cast("B"))
    return digest.hexdigest()


def main() -> None:
    """Answer the one request on standard input: a line, for not every launcher passes on where a file ends."""
    # Whatever prints by mistake must not get between the lines of the answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    team = launched()

    def answer(message: dict) -> None:
        if team is None or team.rank == 0:
            answers.write(json.dumps(message) + "\n")

    request = json.loads(sys.stdin.readline()) if team is None or team.rank == 0 else None
    request = request if team is None else team.tell(request)[0]
    sys.path[:] = [*request["path"], *(folder for folder in sys.path if folder not in request["path"])]
    failure = None
    try:
        gradients = None if request["gradients"] is None else Path(request["gradients"])
        job, strategy = unpack(request["job"]), unpack(request["strategy"])
        answer({"result": train(job, strategy, lambda k: answer({"step": k}), gradients, team)})
    except CllmError as error:
        failure = str(error)
    except MemoryError:
        failure = "out of memory. Choose a strategy that keeps less, or a smaller micro-batch or model."
    except Exception as error:
        traceback.print_exc()
        failure = f"{type(error).__name__}: {error}"
    if failure is not None:
        answer({"error": failure})
    if team is not None:
        team.leave(patient=True) if failure is None else team.fail(failure)


if __name__ == "__main__":
    main()
