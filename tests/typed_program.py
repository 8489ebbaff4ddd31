"""A program of a user that mypy --strict has to pass, for what cllm exports has whole types; see test_types.py."""
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cllm
from cllm.strategies import Strategy


class Telling(cllm.Callback):
    def on_event(self, trainer: Any, record: dict[str, Any]) -> None:
        print(trainer, record)


def train(steps: int) -> float:
    config = cllm.ModelConfig.preset("tiny")
    model = cllm.GPT(config, seed=0)
    executor = cllm.Executor(model, batch_size=2, seq_len=16, strategy=cllm.MemoryBudget("6MB"), num_threads=1)
    optimizer, loss = cllm.AdamW(model, lr=1e-3), 0.0
    for step in range(steps):
        tokens = np.full((2, 16), step)
        model.zero_grad()
        loss = executor.loss_and_grad(tokens, tokens)
        norm: float = cllm.clip_grad_norm(model, 1.0)
        print(norm, executor.memory.arena_bytes, executor.high_water_bytes)
        optimizer.step()
    return loss


def look(model: cllm.Model) -> str:
    plan: cllm.Plan = cllm.plan(model, 2, 16, strategy="selective")
    strategies: list[Strategy] = [cllm.CacheAll(), cllm.Selective(("norm", "act")), cllm.EveryNth(2), cllm.Sqrt(),
                                  cllm.Binomial(3), cllm.RecomputeAll(), cllm.MemoryBudget("6MB")]
    for strategy in strategies:
        cllm.print_saved_values(model, 2, 16, strategy)
    tokens: NDArray[Any] = cllm.generate(model, [1, 2, 3], max_new_tokens=4)
    error: float = cllm.gradient_error(model, tokens[None, :-1], tokens[None, 1:], strategy="int8")
    errors: dict[str, float] = cllm.gradient_error(model, tokens[None, :-1], tokens[None, 1:], by_layer=True)
    facts: dict[str, object] = cllm.versions()
    return f"{plan.table()} {plan.arena_bytes} {error} {errors} {facts['level']}"


def feeds(step: int) -> Mapping[str, NDArray[Any]]:
    tokens = np.full((2, 17), step)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


def run(path: str) -> None:
    model = cllm.from_pretrained(path)
    trainer = cllm.Trainer(model, data=feeds, out=None, callbacks=[Telling()], steps=3)
    result = trainer.run()
    print(result.step, trainer.sample("it", max_new_tokens=3))
    text: str = cllm.load_tokenizer(path).decode([1, 2])
    cllm.set_num_threads(2)
    print(text, cllm.gradcheck(model, np.zeros((2, 4), int), np.ones((2, 4), int)))
