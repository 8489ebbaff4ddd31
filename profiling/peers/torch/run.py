"""The contestant PyTorch of a whole training run: cllm's weights, windows and rates, PyTorch's own steps.

Needs PyTorch and NumPy, not cllm.
"""

import harness

from peers import process
from peers.torch.steps import model_of


class Run:
    """One run, made by `make`, trained by `stretch`."""

    def make(self, config: dict, settings: dict, threads: int, files: dict) -> dict:
        """Build everything from what the contestant cllm wrote."""
        import numpy as np
        import torch
        import torch.utils.checkpoint

        torch.set_num_threads(threads)
        self.settings = settings
        with np.load(files["data"]) as saved:
            self.data = {name: saved[name] for name in saved.files}
        self.model = model_of(config, files["weights"])
        decay = 0.1 if settings["weight_decay"] is None else settings["weight_decay"]
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": decay},
                                            {"params": others, "weight_decay": 0.0}],
                                           lr=settings["lr"], betas=settings["betas"] or (0.9, 0.95),
                                           eps=settings["eps"], fused=True)
        self.step_number = 0
        return {"torch": torch.__version__}

    def stretch(self, steps: int) -> dict:
        """Take so many steps; the seconds of each and their losses."""
        losses = []
        seconds = harness.burst(lambda: losses.append(self._step()), steps)
        return {"seconds": seconds, "losses": losses}

    def evaluate(self) -> float:
        """Validation loss in nats per token."""
        import torch

        starts, rows = self.data["val_starts"], self.settings["batch_size"]
        total = 0.0
        with torch.no_grad():
            for first in range(0, len(starts), rows):
                tokens, targets = self._windows("validation", starts[first:first + rows])
                total += self.model(tokens, targets, 1).item()
        return total / (len(starts) * self.settings["seq_len"])

    def _step(self) -> float:
        import torch

        tokens, targets = self._windows("train", self.data["starts"][self.step_number])
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.data["rates"][self.step_number])
        self.optimizer.zero_grad()
        loss = self.model(tokens, targets, targets.numel())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"])
        self.optimizer.step()
        self.step_number += 1
        return loss.item()

    def _windows(self, part: str, starts):
        import numpy as np
        import torch

        rows = self.data[part][starts[:, None] + np.arange(self.settings["seq_len"] + 1)].astype(np.int64)
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())


if __name__ == "__main__":
    run = Run()
    process.serve(make=run.make, stretch=run.stretch, evaluate=run.evaluate)
