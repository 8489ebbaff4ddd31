"""Two layers of one's own in NumPy, what proves them, and a model that trains with them (docs/your-own-layer.md).

    python examples/your_own_layer.py
"""

import argparse
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import cllm
from cllm import layers
from cllm.corpus import batch, embedded_text
from cllm.testing import check_layer
from cllm.tokenizer import ByteTokenizer


@dataclass(frozen=True)
class Scale(cllm.Layer):
    """y = x w, column by column."""

    C: int

    sites = (cllm.Site("y", "N C", "scaled rows", group="norm"),)
    params = (cllm.Param("weight", "C", "ones"),)
    reads = {"x": "N C"}
    in_order = True

    def forward(self, x, weight, *, y):
        np.multiply(x, weight, out=y)

    def accumulate(self, dy, x, *, dweight):
        for row in dy * x:
            dweight += row

    def backward(self, dy, weight, *, dx):
        np.multiply(dy, weight, out=dx)


@dataclass(frozen=True)
class Convolution(cllm.Layer):
    """y[t] = sum over k below K of w[k] x[t - k], column by column: each position sees itself and the K - 1 before it."""

    C: int
    K: int
    std: float = 0.5  # of the initial weights

    sites = (cllm.Site("y", "B T C", "mixed positions", group="attn"),)
    params = (cllm.Param("weight", "K C"),)
    reads = {"x": "B T C"}
    across = True
    in_order = True

    def forward(self, x, weight, *, y):
        np.multiply(x, weight[0], out=y)
        for k in range(1, min(self.K, x.shape[1])):
            y[:, k:] += x[:, :-k] * weight[k]

    def accumulate(self, dy, x, *, dweight):
        for dsequence, sequence in zip(dy, x, strict=True):
            for k in range(min(self.K, len(sequence))):
                dweight[k] += (dsequence[k:] * sequence[:len(sequence) - k]).sum(axis=0)

    def backward(self, dy, weight, *, dx):
        np.multiply(dy, weight[0], out=dx)
        for k in range(1, min(self.K, dy.shape[1])):
            dx[:, :-k] += dy[:, k:] * weight[k]

    def start(self, room, dtype):
        return np.zeros((self.K - 1 + room, self.C), dtype)  # rows of zeros stand before the first

    def extend(self, state, position, x, weight):
        first, count = self.K - 1 + position, x.shape[1]
        state[first:first + count] = x[0]
        return sum(state[first - k:first - k + count] * weight[k] for k in range(self.K))


@dataclass(frozen=True)
class Convolutional(cllm.Architecture):
    """A language model that mixes positions by short convolutions alone."""

    vocab_size: int = 256
    n_layers: int = 3
    d_model: int = 48
    d_ff: int = 96
    width: int = 4
    max_seq_len: int = 64

    causal: ClassVar[bool] = True

    def wire(self, w):
        C, F = self.d_model, self.d_ff
        x = w.add("embed", layers.Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, kind="none", std=0.3))
        for number in range(self.n_layers):
            with w.block(number):
                h = w.add("norm", layers.LayerNorm(C=C), x=x)
                h = w.add("scale", Scale(C=C), x=h)
                h = w.add("mix", Convolution(C=C, K=self.width), x=h)
                h = w.add("fc1", layers.Linear(I=C, O=F, group="mlp", std=C ** -0.5), x=h)
                h = w.add("act", layers.Activation(F=F), x=h)
                h = w.add("fc2", layers.Linear(I=F, O=C, group="mlp", std=F ** -0.5), x=h)
                x = w.add("res", layers.Residual(C=C), x=x, branch=h)
        x = w.add("ln_f", layers.LayerNorm(C=C), x=x)
        w.add("head", layers.CrossEntropyHead(V=self.vocab_size, C=C), x=x)


def main(steps: int = 60, threads: int | None = None) -> list[float]:
    """Prove the layers, train a model that has them, and return the loss of each step."""
    for layer in (Scale(C=8), Convolution(C=8, K=3)):
        check_layer(layer)
        print(f"{type(layer).__name__} keeps what it declares")
    model, tokenizer = cllm.Model(Convolutional(), seed=0), ByteTokenizer()
    text = tokenizer.encode(embedded_text())
    executor = cllm.Executor(model, 8, 64, strategy=cllm.MemoryBudget("2MB"), num_threads=threads)
    print(executor.plan.table())
    optimizer, found = cllm.AdamW(model, lr=1e-2), []
    for step in range(steps):
        model.zero_grad()
        found.append(executor.loss_and_grad(*batch(text, 8, 64, step)))
        cllm.clip_grad_norm(model, 1.0)
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1:4d}: loss {found[-1]:.3f}")
    print(f"highest byte written: {executor.high_water_bytes:,}, as predicted: {executor.memory.arena_bytes:,}")
    prompt = tokenizer.encode("It is a truth")
    print("It is a truth", tokenizer.decode(cllm.generate(model, prompt, 60, temperature=0.7)), sep="")
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=60)
    progress = main(**vars(options.parse_args()))
