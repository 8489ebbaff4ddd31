"""The contestant cllm: whole training steps under one strategy, in a process of its own (see `harness.Peer`)."""

import harness

MAX_NORM = 1.0


class Training:
    """One model, executor and optimizer, made by `make` and then stepped."""

    def make(self, config: dict, batch_size: int, seq_len: int, strategy: str, threads: int,
             dtype: str = "float32") -> dict:
        """Build everything and take the first step.

        Returns
        -------
        dict
            The step's loss, resident bytes before the executor was made, and what the executor predicts.
        """
        import cllm
        from cllm.comparison.resident import resident_bytes
        from cllm.strategies import parse

        self.inputs, self.targets = first_batch(batch_size, seq_len)
        self.rss_start = resident_bytes()
        self.model = cllm.GPT(cllm.ModelConfig(**config), seed=0, dtype=dtype)
        rss_model = resident_bytes()
        self.executor = cllm.Executor(self.model, batch_size=batch_size, seq_len=seq_len, strategy=parse(strategy),
                                      optimizer="adamw", num_threads=threads, seed=0)
        self.optimizer = cllm.AdamW(self.model, lr=3e-4)
        self.clip = cllm.clip_grad_norm
        loss = self.step()
        memory = self.executor.memory
        return {"loss": loss, "rss_start_bytes": self.rss_start, "rss_model_bytes": rss_model,
                "arena_bytes": int(memory.arena_bytes), "total_bytes": int(memory.total_bytes),
                "predicted_seconds": self.executor.plan.predicted_seconds}

    def step(self) -> float:
        """One whole step: zero, loss and gradients, clip, AdamW."""
        self.model.zero_grad()
        loss = float(self.executor.loss_and_grad(self.inputs, self.targets))
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
        operations = [list(one) for one in self.executor.timed_step(self.inputs, self.targets)]
        clip = harness.burst(lambda: self.clip(self.model, MAX_NORM), 1)[0]
        adamw = harness.burst(self.optimizer.step, 1)[0]
        return {"operations": operations, "zero_grad": zero, "clip": clip, "adamw": adamw}

    def timeline(self) -> dict:
        """The predicted timeline of a step, every micro-batch of it.

        Returns
        -------
        dict
            ``operations`` (what runs), ``live_bytes`` (alive while it does), and ``by_kind`` (of these, by kind of
            buffer: kept, rebuilt, passing, gradient, stash, scratch).
        """
        schedule, memory = self.executor.schedule, self.executor.memory

        def whole_step(once: list) -> list:
            return once[:schedule.epilogue] * schedule.n_micro + once[schedule.epilogue:]

        names, live = zip(*memory.timeline(), strict=True)
        return {"operations": whole_step(list(names)), "live_bytes": whole_step(list(live)),
                "by_kind": {kind: whole_step(list(sizes)) for kind, sizes in memory.timeline_by_kind().items()}}


def first_batch(batch_size: int, seq_len: int) -> tuple:
    """Tokens and targets of the embedded text, each of shape B T."""
    from cllm.corpus import batch, embedded_text
    from cllm.tokenizer import ByteTokenizer

    return batch(ByteTokenizer().encode(embedded_text()), batch_size, seq_len, 0, 0)


def export(config: dict, batch_size: int, seq_len: int, weights: str, data: str) -> None:
    """Write the weights and the batch that `Training.make` starts from, for a contestant without cllm."""
    import numpy as np

    import cllm

    np.savez(weights, **cllm.GPT(cllm.ModelConfig(**config), seed=0).parameters)
    tokens, targets = first_batch(batch_size, seq_len)
    np.savez(data, tokens=tokens, targets=targets)


if __name__ == "__main__":
    training = Training()
    harness.serve(make=training.make, burst=training.burst, watched_burst=training.watched_burst,
                  parts=training.parts, timeline=training.timeline, export=export)
