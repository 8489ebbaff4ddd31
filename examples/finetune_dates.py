"""Teaches a small language model one thing: to write any date as year-month-day. It makes its own examples.

    pip install ".[hf]"
    python examples/get_smollm2.py weights
    python examples/finetune_dates.py weights/SmolLM2-135M-Instruct.Q4_1.gguf tuned

The first argument is a GGUF file or a directory with config.json and safetensors, the second where the adapters go. Adapters
alone are trained, inside a memory budget. How many answers are right to the letter is counted before and after, on dates that
are not among the examples.
"""

import argparse
import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np

import cllm
from cllm.comparison.machine import describe_machine
from cllm.models.architecture import record_of
from cllm.models.choosing import model_in
from cllm.pretrained import Speech

FORMS = ("{day} {month} {year}", "{month} {day}, {year}", "{day}th of {month}, {year}", "{month} {day} {year}",
         "{short} {day}, {year}", "the {day}. of {month} {year}")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")
FIRST, DAYS = date(1950, 1, 1), 36_500  # a hundred years
MOST_TOKENS = 24  # of an answer
SHOWN = 3


def conversations(count: int, seed: int) -> list[dict]:
    """So many different dates as a user may write them, each with the answer, in the order of a seed."""
    rng = np.random.default_rng(seed)
    found = []
    for day in rng.choice(DAYS, count, replace=False).tolist():
        when = FIRST + timedelta(day)
        month = MONTHS[when.month - 1]
        written = FORMS[int(rng.integers(len(FORMS)))].format(day=when.day, month=month, short=month[:3], year=when.year)
        found.append({"messages": [{"role": "user", "content": f"Write this date as year-month-day: {written}"},
                                   {"role": "assistant", "content": when.isoformat()}]})
    return found


def answers(model, speech, held_back: list[dict], threads: int | None) -> list[str]:
    """What the model says to each question, the likeliest token every time."""
    return [speech.tokenizer.decode([i for i in cllm.generate(
        model, speech.chat(one["messages"][:1]), MOST_TOKENS, temperature=0, stop=speech.stops, num_threads=threads)
        if i not in speech.stops]).strip() for one in held_back]


def right(said: list[str], held_back: list[dict]) -> int:
    """How many are the answer to the letter."""
    return sum(text == one["messages"][1]["content"] for text, one in zip(said, held_back, strict=True))


def tune(base, speech, asked) -> dict:
    """Ask, train adapters, ask again; what was found."""
    every = conversations(asked.examples + asked.held_back, asked.seed)
    training, held_back = every[:asked.examples], every[asked.examples:]
    asked.out.mkdir(parents=True, exist_ok=True)
    files = [asked.out / name for name in ("train.jsonl", "valid.jsonl")]
    for file, some in zip(files, (training, held_back), strict=True):
        file.write_text("".join(json.dumps(one) + "\n" for one in some))
    model = cllm.add_lora(base, rank=asked.rank, alpha=2 * asked.rank, targets=asked.targets.split(","))
    data, valid = (cllm.FineTuningData(file, speech, asked.batch_size, asked.seq_len, seed=asked.seed, evaluation=number == 1)
                   for number, file in enumerate(files))
    print(f"{data.in_words()}\n\n{data.show(1)}\n")

    before = answers(model, speech, held_back, asked.threads)
    print(f"before: {right(before, held_back)} of {len(held_back)} right")
    trainer = cllm.Trainer(model, data=data, eval_data=valid, steps=asked.steps, lr=asked.lr, memory_budget=asked.memory_budget,
                           eval_every=max(1, asked.steps // 4), num_threads=asked.threads, callbacks=[Evaluations()])
    trainer.run()
    after = answers(model, speech, held_back, asked.threads)
    print(f"after: {right(after, held_back)} of {len(held_back)} right")
    for one, *said in list(zip(held_back, before, after, strict=True))[:SHOWN]:
        print(f"  {one['messages'][0]['content']}\n    before: {said[0]!r}\n    after:  {said[1]!r}")
    cllm.save_adapter(model, asked.out / "adapter")
    memory = trainer.executors.of(*trainer.source.sizes).memory
    return {"right_before": right(before, held_back), "right_after": right(after, held_back), "held_back": len(held_back),
            "examples": len(training), "trained": sum(model.parameters[n].size for n in model.program.trained),
            "losses": trainer.losses, "evaluations": trainer.callbacks[-1].found, "arena_bytes": memory.arena_bytes,
            "total_bytes": memory.total_bytes, "budget_bytes": trainer.executors.limit,
            "answers": [[one["messages"][0]["content"], *said] for one, *said in zip(held_back, before, after, strict=True)]}


class Evaluations(cllm.Callback):
    """Tells of every evaluation, and keeps them."""

    def __init__(self):
        self.found = []

    def on_event(self, trainer, record: dict) -> None:
        if record["event"] == "evaluation":
            self.found.append({name: record[name] for name in ("step", "val_loss", "perplexity")})
            print(f"step {record['step']:4}: {record['val_loss']:.4f} nats per target")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file, or a directory with config.json")
    parser.add_argument("out", type=Path, help="where examples and adapters go")
    parser.add_argument("--examples", type=int, default=400, help="conversations to train on")
    parser.add_argument("--held-back", type=int, default=40, help="conversations to ask before and after")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=2, help="rows of a step, each of several conversations")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", default="all")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--memory-budget", default="900MB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="write what was found there")
    return parser.parse_args(given)


def main() -> None:
    asked = arguments()
    model = model_in(asked.model)
    found = tune(model, Speech.beside(asked.model), asked)
    if asked.json is not None:
        asked.json.write_text(json.dumps({
            "script": "finetune_dates", "machine": describe_machine(), **record_of(model.architecture),
            "model": f"{asked.model.stem}, {sum(p.size for p in model.parameters.values()):,} parameters",
            "batch_size": asked.batch_size, "seq_len": asked.seq_len, "threads": asked.threads, "dtype": "float32",
            "lr": asked.lr, "rank": asked.rank, "targets": asked.targets, "training_steps": asked.steps, **found},
            indent=1) + "\n")


if __name__ == "__main__":
    main()
