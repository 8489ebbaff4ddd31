"""The contestant cllm: whole training steps under one strategy, in a process of its own (see `process.Peer`)."""

from dataclasses import replace

import harness
from jobs import models

from peers import process

MAX_NORM = 1.0
# What may stand behind the name of a strategy, in this order: its plan updates each parameter in backward, so that gradients
# pass away; a plus, and the mode in which products are computed.
UPDATES, NARROW = "+update", ("bfloat16", "bfloat16:units")


class Training:
    """One model, executor and optimizer, made by `make` and then stepped."""

    def make(self, model: dict, batch_size: int, seq_len: int | None, strategy: str, threads: int,
             dtype: str = "float32") -> dict:
        """Build everything and take the first step; `model` is of `jobs.models.asked`.

        Returns
        -------
        dict
            The step's loss, resident bytes before the executor was made, what the executor predicts, and its declared
            floating-point operations.
        """
        import cllm
        from cllm.comparison.resident import resident_bytes
        architecture = models.architecture(model)
        self.feeds = first_batch(architecture, batch_size, seq_len)
        self.rss_start = resident_bytes()
        self.model = models.weighted(model, dtype)
        rss_model = resident_bytes()
        name, compute = strategy, next((word for word in NARROW if strategy.endswith(f"+{word}")), None)
        if compute is not None:
            name, self.model.compute = strategy.removesuffix(f"+{compute}"), compute
        name, self.updates = name.removesuffix(UPDATES), name.endswith(UPDATES)
        asked = {"batch_size": batch_size, "seq_len": seq_len, "optimizer": "adamw", "num_threads": threads}
        plan = strategy_of(name, architecture)
        if self.updates:
            plan = replace(cllm.plan(self.model, strategy=plan, **asked), update_in_backward=True)
        self.executor = cllm.Executor(self.model, strategy=plan, **asked, seed=0)
        self.optimizer = cllm.AdamW(self.model, lr=3e-4)
        self.clip = cllm.clip_grad_norm
        # adapters begin with what the base computes: their second step tells more
        losses = [self.step() for _ in range(2 if "lora" in model else 1)]
        memory = self.executor.memory
        return {"loss": losses[-1], "rss_start_bytes": self.rss_start, "rss_model_bytes": rss_model,
                "arena_bytes": int(memory.arena_bytes), "total_bytes": int(memory.total_bytes),
                "predicted_seconds": self.executor.plan.predicted_seconds, "exact": self.executor.plan.exact,
                "flops": sum(flops for flops, _ in self.work())}

    def step(self) -> float:
        """One whole step: zero, loss and gradients, clip, AdamW; all at once, without clipping, where backward updates."""
        if self.updates:
            return self.executor.train_step(**self.feeds, optimizer=self.optimizer)
        self.model.zero_grad()
        loss = float(self.executor.loss_and_grad(**self.feeds))
        self.clip(self.model, MAX_NORM)
        self.optimizer.step()
        return loss

    def burst(self, repeats: int) -> list[float]:
        """Seconds of each of `repeats` steps."""
        return harness.burst(self.step, repeats)

    def watched_burst(self, repeats: int) -> dict:
        """Steps with their place on the clock that all processes share, for lining up an outside witness."""
        begin = harness.wall_clock()
        seconds = self.burst(repeats)
        return {"begin": begin, "end": harness.wall_clock(), "seconds": seconds,
                "high_water_bytes": int(self.executor.high_water_bytes)}

    def parts(self) -> dict:
        """One step, part by part: the operations of the schedule, then what follows them."""
        zero = harness.burst(self.model.zero_grad, 1)[0]
        seconds = self.executor.timed_step(**self.feeds).tolist()
        ran = self.executor.schedule.whole_step(self.executor.schedule.ops)
        operations = [[op.kind, op.step.name, one] for op, one in zip(ran, seconds, strict=True)]
        clip = harness.burst(lambda: self.clip(self.model, MAX_NORM), 1)[0]
        adamw = harness.burst(self.optimizer.step, 1)[0]
        return {"operations": operations, "zero_grad": zero, "clip": clip, "adamw": adamw}

    def work(self) -> list[list[float]]:
        """Declared arithmetic and bytes of every operation that `parts` times, in the same order."""
        from cllm.planner.costs import op_work

        schedule, workload = self.executor.schedule, self.executor.workload
        micro, batch = schedule.micro_batch, workload.batch
        sizes = [min(micro, batch - start) for start in range(0, batch, micro)]
        ops = [(op, size) for size in sizes for op in schedule.ops[:schedule.epilogue]]
        ops += [(op, batch) for op in schedule.ops[schedule.epilogue:]]
        return [list(op_work(op, schedule, workload, size)) for op, size in ops]

    def timeline(self) -> dict:
        """The predicted timeline of a step, every micro-batch of it.

        Returns
        -------
        dict
            ``operations`` (what runs), ``live_bytes`` (alive while it does), ``by_kind`` (of these, by kind of buffer:
            kept, rebuilt, passing, gradient, stash, scratch), and ``peak``: the operation during which most is alive, and
            each buffer that is, as (site, block or None, kind, bytes).
        """
        schedule, memory = self.executor.schedule, self.executor.memory
        names, live = zip(*memory.timeline(), strict=True)
        return {"operations": schedule.whole_step(names), "live_bytes": schedule.whole_step(live),
                "by_kind": {kind: schedule.whole_step(sizes) for kind, sizes in memory.timeline_by_kind().items()},
                "peak": {"operation": names[memory.peak], "alive": [list(one) for one in memory.alive_at_peak()]}}


def strategy_of(name: str, architecture):
    """The strategy of a name as on the command line; and ``per-block``, which has none there: the first half of the blocks
    recomputed, the others cached."""
    from cllm import CacheAll, PerBlock, RecomputeAll
    from cllm.strategies import parse

    if name == "per-block":
        return PerBlock({range(0, architecture.program.n_blocks // 2): RecomputeAll()}, default=CacheAll())
    return parse(name)


def calibrate(model: dict, batch_size: int, seq_len: int | None, threads: int) -> float:
    """Measure what plans for this workload cost on this machine and store it; returns the seconds that took."""
    from cllm.calibrate import calibrate as measure
    from cllm.program.workload import Workload

    architecture, workload = models.architecture(model), Workload(batch_size, seq_len, threads=threads)
    return harness.burst(lambda: measure(architecture, workload), 1)[0]


def first_batch(architecture, batch_size: int, seq_len: int | None) -> dict:
    """Every feed by name: the first windows of the embedded text, or what the model draws (see `cllm.comparison.data`)."""
    from cllm.comparison.data import batches_of
    from cllm.comparison.job import Job

    return batches_of(Job(architecture, batch_size, seq_len))(0)


def export(model: dict, batch_size: int, seq_len: int, weights: str, data: str) -> None:
    """Write the weights and the batch that `Training.make` starts from, for a contestant without cllm."""
    import numpy as np

    import cllm

    if "lora" in model:  # as PEFT reads it, beside the base
        cllm.save_adapter(models.weighted(model), f"{weights}/adapter")
    write_weights(models.weighted(models.base_of(model)), weights)
    np.savez(data, **first_batch(models.architecture(model), batch_size, seq_len))


def write_weights(model, weights: str) -> None:
    """Into a ``.npz`` by cllm's names, or, of a name without that ending, into a directory as transformers reads it."""
    import numpy as np

    if weights.endswith(".npz"):
        np.savez(weights, **model.parameters)
    else:
        model.save_pretrained(weights, dtype="float32")


if __name__ == "__main__":
    training = Training()
    process.serve(make=training.make, burst=training.burst, watched_burst=training.watched_burst,
                  parts=training.parts, work=training.work, timeline=training.timeline, export=export,
                  calibrate=calibrate)
