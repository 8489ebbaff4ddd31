"""A strategy of one's own, and what proves it (docs/your-own-strategy.md).

    python examples/your_own_strategy.py
"""

from dataclasses import dataclass

import numpy as np

import cllm
from cllm.testing import assert_gradients_equal_bits, assert_peak_bytes


@dataclass(frozen=True)
class Greedy:
    """Keeps everything at first, then drops value after value, those first that save most bytes for a second of rebuilding,
    until the total is within a limit."""

    limit: int  # bytes in total

    def decide(self, ledger):
        entries = [e for b in range(ledger.n_blocks) for e in ledger.in_block(b) if not e.optional]
        entries.sort(key=lambda e: e.seconds / e.nbytes)
        for count in range(len(entries) + 1):
            dropped = [(e.block, (e.key, cllm.Recompute())) for e in entries[:count]]
            plan = cllm.Plan(tuple(cllm.Tape(b, tuple(d for block, d in dropped if block == b))
                                   for b in range(ledger.n_blocks)))
            if ledger.evaluate(plan).total_bytes <= self.limit:
                return plan
        raise cllm.BudgetError("Greedy(limit)", "must be within reach", f"{self.limit:,}", "Raise it.")


def main(threads: int | None = None) -> None:
    """Plan with it, beside the planner within the same limit, and hold a step against one that keeps everything."""
    config = cllm.ModelConfig.preset("tiny", n_layers=4)
    kept = cllm.plan(config, 4, 64, "cache")
    mine = Greedy(kept.total_bytes * 8 // 10)
    for name, strategy in (("cache", "cache"), ("greedy", mine), ("budget", cllm.MemoryBudget(mine.limit))):
        plan = cllm.plan(config, 4, 64, strategy)
        print(f"{name:6s} {plan.total_bytes:>9,} bytes in total, predicted {plan.predicted_seconds * 1e3:.2f} ms a step")
    print(kept.explain(cllm.plan(config, 4, 64, mine)))

    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, config.vocab_size, (2, 4, 64))
    gradients = []
    for strategy in ("cache", mine):
        model = cllm.GPT(config, seed=0)
        executor = cllm.Executor(model, 4, 64, strategy=strategy, num_threads=threads)
        print(f"loss {executor.loss_and_grad(tokens, targets):.9f}, arena {executor.memory.arena_bytes:,} bytes")
        assert_peak_bytes(executor)
        gradients.append(model.gradients)
    assert_gradients_equal_bits(*gradients)
    print("every gradient has the same bits")


if __name__ == "__main__":
    main()
