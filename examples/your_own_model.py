"""A model of one's own, wired from the package's layers, and all that works on it at once (docs/your-own-model.md).

    python examples/your_own_model.py
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

import cllm
from cllm import layers
from cllm.corpus import batch, embedded_text
from cllm.tokenizer import ByteTokenizer


@dataclass(frozen=True)
class Parallel(cllm.Architecture):
    """A language model whose blocks run attention and feed-forward side by side (Wang and Komatsuzaki 2021):
    x + attention(n) + feed_forward(n) with one n = norm(x)."""

    vocab_size: int = 256
    n_layers: int = 3
    d_model: int = 48
    n_heads: int = 4
    d_ff: int = 128
    max_seq_len: int = 64

    causal: ClassVar[bool] = True

    def wire(self, w):
        C, F = self.d_model, self.d_ff
        x = w.add("embed", layers.Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, std=0.3), {"weight": "tok_emb.weight"})
        for number in range(self.n_layers):
            with w.block(number):
                n = w.add("norm", layers.LayerNorm(C=C), x=x)
                a = w.add("attn.qkv", layers.Linear(I=C, O=3 * C, group="attn", std=C ** -0.5), x=n)
                a = w.add("attn", layers.Attention(H=self.n_heads, D=C // self.n_heads, C=C), qkv=a)
                a = w.add("attn.out", layers.Linear(I=C, O=C, group="attn", std=0.5 * C ** -0.5), x=a)
                f = w.add("mlp.fc1", layers.Linear(I=C, O=F, group="mlp", std=C ** -0.5), x=n)
                f = w.add("mlp.act", layers.Activation(F=F), x=f)
                f = w.add("mlp.fc2", layers.Linear(I=F, O=C, group="mlp", std=0.5 * F ** -0.5), x=f)
                x = w.add("res1", layers.Residual(C=C), x=x, branch=a)
                x = w.add("res2", layers.Residual(C=C), x=x, branch=f)
        x = w.add("ln_f", layers.LayerNorm(C=C), x=x)
        w.add("head", layers.CrossEntropyHead(V=self.vocab_size, C=C), x=x)


def main(steps: int = 60, threads: int | None = None) -> list[float]:
    """Plan, prove the gradients, train within a budget, save, load, and return the loss of each step."""
    small = Parallel(vocab_size=11, n_layers=1, d_model=8, n_heads=2, d_ff=12, max_seq_len=6)
    checked = cllm.gradcheck(cllm.Model(small), **small.example_batch(np.random.default_rng(0), 2, 6), elements=4)
    print(f"gradients equal central differences: {checked.passed}")
    for strategy in ("cache", "selective", "recompute", "cache@2"):
        plan = cllm.plan(Parallel(), 8, 64, strategy)
        print(f"{strategy:9s} arena {plan.arena_bytes / 1e6:5.2f} MB, in total {plan.total_bytes / 1e6:5.2f} MB")

    model, tokenizer = cllm.Model(Parallel(), seed=0), ByteTokenizer()
    text = tokenizer.encode(embedded_text())
    executor = cllm.Executor(model, 8, 64, strategy=cllm.MemoryBudget("3MB"), num_threads=threads)
    print(executor.plan.table())
    optimizer, found = cllm.AdamW(model, lr=5e-3), []
    for step in range(steps):
        model.zero_grad()
        found.append(executor.loss_and_grad(*batch(text, 8, 64, step)))
        cllm.clip_grad_norm(model, 1.0)
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1:4d}: loss {found[-1]:.3f}")
    print(f"highest byte written: {executor.high_water_bytes:,}, as predicted: {executor.memory.arena_bytes:,}")

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "parallel.safetensors")
        again = cllm.load(Path(folder) / "parallel.safetensors", architecture=Parallel)
    prompt = tokenizer.encode("It is a truth")
    print("It is a truth", tokenizer.decode(cllm.generate(again, prompt, 60, temperature=0.7)), sep="")
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=60)
    progress = main(**vars(options.parse_args()))
