"""Tunes a small language model on a text inside a memory budget, and saves it as transformers reads it.

    pip install ".[hf]"
    python examples/get_smollm2.py weights
    python examples/finetune_smollm2.py weights/SmolLM2-135M-Instruct.Q4_1.gguf tuned

The first argument is a GGUF file or a directory with config.json and safetensors, the second where to save. Without --text the
embedded novel is the text; its last tenth is never trained on, and tells what was learned.
"""

import argparse
import json
from pathlib import Path

import cllm
from cllm.comparison.machine import describe_machine
from cllm.models.architecture import record_of
from cllm.models.choosing import model_in
from cllm.pretrained import Speech

PLANS = ("cache", "selective", "recompute")  # shown beside the budget


def main() -> None:
    """Plan, measure, train, measure, save."""
    asked = arguments()
    model, speech = model_in(asked.model), Speech.beside(asked.model)

    # What training will take, to the byte, before anything runs.
    plans = {name: cllm.plan(model, 1, asked.seq_len, name) for name in (*PLANS, f"budget:{asked.memory_budget}")}
    for name, plan in plans.items():
        print(f"{name:16} arena {plan.arena_bytes / 1e6:8.1f} MB   total {plan.total_bytes / 1e6:8.1f} MB")

    prompt = speech.tokenizer.encode(asked.prompt)
    before = text_of(model, speech, prompt)
    trainer = cllm.Trainer(
        model, asked.text, asked.out.with_name(asked.out.name + ".run"), tokenizer=speech.tokenizer, steps=asked.steps,
        batch_size=1, seq_len=asked.seq_len, memory_budget=asked.memory_budget, lr=asked.lr, weight_decay=0.0,
        eval_every=max(1, asked.steps // 4), eval_batches=8, snapshot_every=asked.steps, num_threads=asked.threads,
        callbacks=[Evaluations()])
    trainer.run()
    after = text_of(model, speech, prompt)
    print(f"before: {before!r}\nafter:  {after!r}")
    print(model.save_pretrained(asked.out, dtype=asked.dtype))
    if asked.json is not None:
        evaluations = trainer.callbacks[-1].found
        asked.json.write_text(json.dumps({
            "script": "finetune_smollm2", "machine": describe_machine(), **record_of(model.architecture), "batch_size": 1,
            "model": f"{asked.model.stem}, {sum(p.size for p in model.parameters.values()):,} parameters",
            "seq_len": asked.seq_len, "threads": asked.threads, "dtype": "float32", "lr": asked.lr,
            "training_steps": asked.steps,
            "evaluations": evaluations, "losses": trainer.losses, "before": before, "after": after, "prompt": asked.prompt,
            "plans": [{"name": name, "arena_bytes": plan.arena_bytes, "total_bytes": plan.total_bytes}
                      for name, plan in plans.items()]}, indent=1) + "\n")


class Evaluations(cllm.Callback):
    """Tells of every evaluation, and keeps them."""

    def __init__(self):
        self.found = []

    def on_event(self, trainer, record: dict) -> None:
        if record["event"] == "evaluation":
            self.found.append({name: record[name] for name in ("step", "val_loss", "perplexity", "bits_per_byte")})
            print(f"step {record['step']:4}: {record['val_loss']:.4f} nats a token, perplexity {record['perplexity']:.3f}")


def text_of(model, speech, prompt) -> str:
    """What the model goes on with, the likeliest token every time."""
    return speech.tokenizer.decode(cllm.generate(model, prompt, 40, temperature=0, stop=speech.stops))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file, or a directory with config.json")
    parser.add_argument("out", type=Path, help="where the tuned model goes; snapshots go beside it, into OUT.run")
    parser.add_argument("--text", type=Path, default=None, help="(default: the embedded novel)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--memory-budget", default="2350MB")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", default="It is a truth universally acknowledged, that")
    parser.add_argument("--dtype", default=None, help="of the saved files (default: that of the model's, float32 for GGUF)")
    parser.add_argument("--json", type=Path, default=None, help="write what was measured there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
