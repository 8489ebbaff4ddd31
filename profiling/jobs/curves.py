"""Curves of the loss: the same small training under another way of keeping numbers, judged against the spread of seeds.

A run is a function of its variant and its seed alone, and nothing is timed, so neither load nor threads matter. Every
run of a seed starts from the same weights and sees the same batches, and all are judged on the same part of the text,
which none is trained on. So a variant is compared with the exact run of its seed. What a variant does to training is the
mean of these differences over the seeds; it counts as nothing where it is below what another seed does to the exact run:
the spread, greatest less least over the seeds, of the same evaluation.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import draw
import harness
import numpy as np

import cllm
from cllm import corpus
from cllm.optim import optimizer_named
from cllm.optim.rate import Rate
from jobs import record
from jobs.resumed import Parts

SIZES = dict(vocab_size=256, n_layers=4, d_model=128, n_heads=4, d_ff=512, max_seq_len=128)
QUICK = dict(vocab_size=256, n_layers=2, d_model=32, n_heads=2, d_ff=64, max_seq_len=32)
VALIDATION_BATCHES = 12


@dataclass(frozen=True)
class Variant:
    """How a run keeps its numbers.

    Parameters
    ----------
    strategy : object
        Of the executor.
    working_copy : callable or None
        What forward and backward see of a matrix; the optimizer goes on from the master weights.
    compute : {"float32", "bfloat16", "bfloat16:units"}
        As of `cllm.Model`.
    optimizer : str
        As of `cllm.optim.optimizer_named`.
    rate : float
        What the rates of the job are multiplied by.
    config : type
        Of the model's settings.
    """

    strategy: object = field(default_factory=cllm.CacheAll)
    working_copy: Callable[[np.ndarray], np.ndarray] | None = None
    compute: str = "float32"
    optimizer: str = "adamw"
    rate: float = 1.0
    config: type[cllm.ModelConfig] = cllm.ModelConfig


@dataclass(frozen=True)
class Job:
    """What all runs share."""

    sizes: dict
    steps: int
    batch_size: int
    lr: float
    threads: int
    evaluations: int

    @property
    def config(self) -> cllm.ModelConfig:
        """The model."""
        return cllm.ModelConfig(**self.sizes)

    def to_dict(self) -> dict:
        """For the result file."""
        return {"config": self.config.to_dict(), "steps": self.steps, "batch_size": self.batch_size,
                "seq_len": self.config.max_seq_len, "lr": self.lr}


def trained(job: Job, variant: Variant, seed: int) -> dict:
    """Train once.

    Returns
    -------
    dict
        ``losses`` of every step, ``evaluations`` as pairs (step, loss on the validation part).
    """
    config, B, T = variant.config(**job.sizes), job.batch_size, job.config.max_seq_len
    train, validation = corpus.split(np.frombuffer(corpus.embedded_text(), np.uint8), 0.1, T)
    model = cllm.GPT(config, seed=seed, compute=variant.compute)
    opt = optimizer_named(variant.optimizer, model, job.lr)
    ex = cllm.Executor(model, batch_size=B, seq_len=T, strategy=variant.strategy, num_threads=job.threads, seed=seed,
                       optimizer=opt.kind)
    rate = Rate(job.lr, total=job.steps, warmup=max(1, job.steps // 20), min_lr=job.lr / 10)
    starts = corpus.even_starts(len(validation), T, most=VALIDATION_BATCHES * B)
    parts = [corpus.gather(validation, starts[i:i + B], T) for i in range(0, len(starts) - B + 1, B)]
    matrices = [name for name, p in model.parameters.items() if p.ndim > 1] if variant.working_copy else []
    marks = {round(job.steps * (k + 1) / job.evaluations) for k in range(job.evaluations)}
    losses, evaluations = [], []
    for step in range(job.steps):
        opt.lr = variant.rate * rate(step)
        model.zero_grad()
        masters = {name: model.parameters[name].copy() for name in matrices}
        for name in matrices:
            model.parameters[name][...] = variant.working_copy(masters[name])
        losses.append(ex.loss_and_grad(*corpus.batch(train, B, T, step, seed=seed)))
        for name, master in masters.items():
            model.parameters[name][...] = master
        cllm.clip_grad_norm(model, 1.0)
        opt.step()
        if step + 1 in marks:
            evaluations.append((step + 1, mean(ex.loss(*part) for part in parts)))
    return {"losses": losses, "evaluations": evaluations}


def compare(script: str, job: Job, variants: dict[str, Variant], arguments) -> list[dict]:
    """A row for each variant, the first being the exact one: runs of every seed and what they say.

    Runs that ended before the script was killed are not repeated (jobs/resumed.py), nor are they for more seeds or variants.
    """
    parts, rows = _parts(script, job, arguments), []
    for name, variant in variants.items():
        runs = []
        for seed in range(arguments.seeds):
            harness.say(f"{name}, seed {seed}")
            runs.append(parts.part(f"{name}, seed {seed}", lambda variant=variant, seed=seed: trained(job, variant, seed)))
        rows.append({"name": name, "runs": runs})
    harness.say("")
    judge(rows)
    return rows


def _parts(script: str, job: Job, arguments) -> Parts:
    return Parts(arguments.out or record.result_path(script, ".json"), {**job.to_dict(), "evaluations": job.evaluations})


def judge(rows: list[dict]) -> None:
    """Add to each row its last losses, their distances from the exact runs seed by seed, and the verdict.

    ``mean_share`` is the mean over the seeds of the difference from the exact run, as a share of the spread of the exact
    runs, at the evaluation where it is greatest; the curve lies within the spread where that is below one.
    ``largest_share`` is the same of the greatest single difference: runs that differ in one rounding drift apart, and a
    spread of few seeds may be small by chance, so it may pass one.
    """
    exact = [run["evaluations"] for run in rows[0]["runs"]]
    spreads = [max(points) - min(points) for points in zip(*([loss for _, loss in one] for one in exact), strict=True)]
    for row in rows:
        differences = [[one - other for (_, one), (_, other) in zip(run["evaluations"], reference, strict=True)]
                       for run, reference in zip(row["runs"], exact, strict=True)]
        at_once = list(zip(*differences, strict=True))
        row["last"] = [run["evaluations"][-1][1] for run in row["runs"]]
        row["differences"] = list(at_once[-1])
        row["spread"] = spreads[-1]
        row["mean_share"] = max(abs(mean(found)) / spread for found, spread in zip(at_once, spreads, strict=True))
        row["largest_share"] = max(max(map(abs, found)) / spread for found, spread in zip(at_once, spreads, strict=True))
        row["within"] = row["mean_share"] < 1


def print_rows(rows: list[dict]) -> None:
    """The verdicts, on the terminal."""
    print(f"{'':29s} {'last loss, mean':>15s}  {'least to most':18s} {'difference by seed':30s} share of the spread: "
          "mean, largest")
    for row in rows:
        print(f"{row['name']:29s} {mean(row['last']):15.4f}  {min(row['last']):.4f} to {max(row['last']):.4f}   "
              f"{', '.join(f'{d:+.4f}' for d in row['differences']):30s} {row['mean_share']:.2f}, "
              f"{row['largest_share']:.2f}"
              f"{'' if row['within'] else '  NOT within'}")


def publish(script: str, job: Job, rows: list[dict], arguments, more: dict | None = None) -> int:
    """Print, write and draw the rows, `more` beside them; returns the exit code, 1 when a curve leaves the spread of seeds."""
    print_rows(rows)
    path = record.write_result(script, arguments.threads, {**job.to_dict(), **(more or {}), "rows": rows}, arguments.out)
    _parts(script, job, arguments).finish()
    pictures = draw.draw(path)
    print(draw.told(path, pictures))
    return int(not all(row["within"] for row in rows))


def options(parser) -> None:
    """Command-line options that the scripts share; read them with `job_of`."""
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps, to see that all runs")
    for name, kind, usual, quick in DEFAULTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=f"{usual}, or {quick} with --quick")
    parser.add_argument("--threads", type=int, default=1, help="figures do not depend on them (default: 1)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.json", help="the picture goes beside it")


DEFAULTS = (("seeds", int, 3, 2), ("steps", int, 300, 20), ("batch_size", int, 8, 4), ("lr", float, 2e-3, 2e-3),
            ("evaluations", int, 12, 4))


def job_of(arguments) -> Job:
    """The job that the command line asks for; ``arguments.seeds`` is filled in."""
    chosen = {name: getattr(arguments, name) if getattr(arguments, name) is not None else
              (quick if arguments.quick else usual) for name, _, usual, quick in DEFAULTS}
    arguments.seeds = chosen.pop("seeds")
    return Job(QUICK if arguments.quick else SIZES, threads=arguments.threads, **chosen)
