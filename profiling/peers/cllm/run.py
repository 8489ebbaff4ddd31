"""The contestant cllm of a whole training run: a `cllm.train.Trainer`, stepped in stretches (see `process.Peer`)."""

import harness

from peers import process


class Run:
    """One run, made by `make`, trained by `stretch`."""

    def make(self, config: dict, settings: dict, files: dict | None = None) -> dict:
        """Build everything; with `files`, write what PyTorch needs to train the same run.

        Parameters
        ----------
        files : dict or None
            Paths of the ``.npz`` files "weights" (parameters by name) and "data" (tokens, where the windows of each
            step and of validation begin, and the rate of each step).
        """
        import cllm
        from cllm import corpus
        from cllm.train import Trainer

        model = cllm.GPT(cllm.ModelConfig(**config), seed=settings.get("seed", 0))
        trainer = self.trainer = Trainer(model, None, **settings)
        s, source = trainer.settings, trainer.source
        if files is not None:
            import numpy as np

            np.savez(files["weights"], **trainer.model.parameters)
            np.savez(files["data"], train=source.train_tokens, validation=source.val_tokens,
                     starts=source.windows.starts(0, s.steps * s.batch_size).reshape(s.steps, s.batch_size),
                     val_starts=corpus.even_starts(len(source.val_tokens), s.seq_len, s.eval_batches * s.batch_size),
                     rates=np.array([trainer.rate(step) for step in range(s.steps)]))
        return {"total_bytes": trainer.executors.total_bytes, "settings": s.to_dict(),
                "plan": trainer.executors.of(s.batch_size, s.seq_len).plan.table()}

    def stretch(self, steps: int) -> dict:
        """Take so many steps; the seconds of each and their losses."""
        before = len(self.trainer.losses)
        seconds = harness.burst(self.trainer.train_step, steps)
        return {"seconds": seconds, "losses": self.trainer.losses[before:]}

    def evaluate(self) -> float:
        """Validation loss in nats per token."""
        return self.trainer.evaluate()


if __name__ == "__main__":
    run = Run()
    process.serve(make=run.make, stretch=run.stretch, evaluate=run.evaluate)
