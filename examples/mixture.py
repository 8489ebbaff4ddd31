"""A language model whose feed-forward layers are mixtures of experts (Shazeer et al. 2017), without capacity limits.

Every expert works on every row, and a row's output is that of its best experts, each times its share: so nothing depends on
the rest of the batch, and any cut of it gives the same bits. The experts stand side by side in two products; between them
one layer in NumPy multiplies the hidden columns of each by its share.

    python examples/mixture.py              # trains for seconds on the embedded novel, within four megabytes
    python examples/mixture.py --steps 400
"""

import argparse
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import cllm
from cllm import layers
from cllm.corpus import batch, embedded_text
from cllm.tokenizer import ByteTokenizer


@dataclass(frozen=True)
class Shares(cllm.Layer):
    """y = x times the share of the column's expert: the softmax of a row's scores over its K best, zero for the others."""

    E: int  # experts
    F: int  # hidden columns of each
    K: int

    sites = (cllm.Site("y", "N EF", "hidden rows, weighted", group="mlp"),)
    reads = {"x": "N EF", "scores": "N E"}

    def forward(self, x, scores, *, y):
        np.multiply(self.parted(x), self.shares(scores)[:, :, None], out=self.parted(y))

    def backward(self, dy, x, scores, *, dx, dscores):
        shares = self.shares(scores)
        np.multiply(self.parted(dy), shares[:, :, None], out=self.parted(dx))
        dshares = (self.parted(dy) * self.parted(x)).sum(axis=2)
        dscores[...] = shares * (dshares - (shares * dshares).sum(axis=1, keepdims=True))

    def parted(self, x):
        """The columns as an axis of experts and one of their own."""
        return x.reshape(len(x), self.E, self.F)

    def shares(self, scores):
        """Of each expert, by row; where scores are equal at the K-th place, all who have it are taken."""
        best = np.partition(scores, self.E - self.K, axis=1)
        shares = np.exp(scores - best.max(axis=1, keepdims=True)) * (scores >= best[:, [self.E - self.K]])
        return shares / shares.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Mixture(cllm.Architecture):
    """Pre-norm blocks with causal attention and `experts` feed-forward layers, of which a row uses `top`."""

    vocab_size: int = 256
    n_layers: int = 2
    d_model: int = 48
    n_heads: int = 4
    d_ff: int = 48  # of one expert
    experts: int = 4
    top: int = 2
    max_seq_len: int = 64

    causal: ClassVar[bool] = True

    def wire(self, w):
        C, E, F, narrow = self.d_model, self.experts, self.d_ff, self.d_model ** -0.5
        x = w.add("embed", layers.Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, std=0.3))
        for number in range(self.n_layers):
            with w.block(number):
                h = w.add("ln1", layers.LayerNorm(C=C), x=x)
                h = w.add("attn.qkv", layers.Linear(I=C, O=3 * C, group="attn", std=narrow), x=h)
                h = w.add("attn", layers.Attention(H=self.n_heads, D=C // self.n_heads, C=C), qkv=h)
                h = w.add("attn.out", layers.Linear(I=C, O=C, group="attn", std=0.5 * narrow), x=h)
                x = w.add("res1", layers.Residual(C=C), x=x, branch=h)
                h = w.add("ln2", layers.LayerNorm(C=C), x=x)
                scores = w.add("router", layers.Linear(I=C, O=E, bias=False, group="mlp", std=narrow), x=h)
                h = w.add("experts.fc1", layers.Linear(I=C, O=E * F, group="mlp", std=narrow), x=h)
                h = w.add("experts.act", layers.Activation(F=E * F), x=h)
                h = w.add("experts.shares", Shares(E=E, F=F, K=self.top), x=h, scores=scores)
                h = w.add("experts.fc2", layers.Linear(I=E * F, O=C, bias=False, group="mlp", std=0.5 * narrow), x=h)
                x = w.add("res2", layers.Residual(C=C), x=x, branch=h)
        x = w.add("ln_f", layers.LayerNorm(C=C), x=x)
        w.add("head", layers.CrossEntropyHead(V=self.vocab_size, C=C, std=0.1 * narrow), x=x)


def main(steps: int = 80, threads: int | None = None) -> list[float]:
    """Train, and return the loss on held-out text: before, and after each quarter of the steps."""
    model = cllm.Model(Mixture(), seed=0)
    tokenizer = ByteTokenizer()
    text = tokenizer.encode(embedded_text())
    training, held_out = text[:-20_000], text[-20_000:]

    executor = cllm.Executor(model, 8, 64, strategy=cllm.MemoryBudget("4MB"), num_threads=threads)
    print(executor.plan.table())
    optimizer = cllm.AdamW(model, lr=1e-2)
    found = []
    for step in range(steps + 1):
        if step % max(1, steps // 4) == 0:
            found.append(float(np.mean([executor.loss(*batch(held_out, 8, 64, n)) for n in range(4)])))
            print(f"step {step:4d}: {found[-1]:.3f} nats a byte of held-out text")
        if step < steps:
            model.zero_grad()
            executor.loss_and_grad(*batch(training, 8, 64, step))
            cllm.clip_grad_norm(model, 1.0)
            optimizer.step()
    print(f"highest byte written: {executor.high_water_bytes:,}, as predicted: {executor.memory.arena_bytes:,}")
    prompt = tokenizer.encode("It is a truth")
    print("It is a truth", tokenizer.decode(cllm.generate(model, prompt, 60, temperature=0.7)), sep="")
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=80)
    progress = main(**vars(options.parse_args()))
