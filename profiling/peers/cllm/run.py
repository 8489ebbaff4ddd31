"""The contestant cllm of a whole training run: a `cllm.train.Trainer`, stepped in stretches (see `process.Peer`)."""

import harness
from jobs import models

from peers import process
from peers.cllm.steps import write_weights


class Run:
    """One run, made by `make`, trained by `stretch`."""

    def make(self, model: dict, settings: dict, files: dict | None = None) -> dict:
        """Build everything; with `files`, write what PyTorch needs to train the same run.

        Parameters
        ----------
        model : dict
            As `jobs.models.asked` returns it. One in other people's files is trained on with its own tokenizer.
        files : dict or None
            Paths of "weights" (see `steps.write_weights`) and of the ``.npz`` "data" (tokens, where the windows of each
            step and of validation begin, and the rate of each step).
        """
        from cllm import corpus
        from cllm.models.choosing import is_files
        from cllm.pretrained import Speech
        from cllm.train import Trainer

        tokenizer = Speech.beside(model["source"]).tokenizer if is_files(model["source"]) else None
        trainer = self.trainer = Trainer(models.weighted(model, seed=settings.get("seed", 0)), None, tokenizer=tokenizer,
                                         **settings)
        s, source = trainer.settings, trainer.source
        if files is not None:
            import numpy as np

            write_weights(trainer.model, files["weights"])
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
