"""An encoder that tells speech from narration: attention both ways, written in NumPy, and a head over whole passages.

The passages are those of the embedded novel, cut at its quotation marks; the marks themselves are left out.

    python examples/encoder.py              # trains for seconds, within two megabytes
    python examples/encoder.py --steps 400
"""

import argparse
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

import cllm
from cllm import layers
from cllm.corpus import embedded_text

WORDS, LEAST = 16, 8  # in a passage, at most and at least
HELD_OUT = 500  # passages on which accuracy is measured


@dataclass(frozen=True)
class BothWays(cllm.Layer):
    """Softmax attention without a mask (Vaswani et al. 2017): H heads of D channels, every position sees all others."""

    H: int
    D: int
    C: int  # H * D

    sites = (cllm.Site("y", "B T C", "attended values", group="attn"),)
    scratch = (cllm.Scratch("room", lambda layer, letters, threads, itemsize:
                            2 * letters["B"] * layer.H * letters["T"] ** 2),)
    reads = {"qkv": "B T 3C"}
    across = True

    def forward(self, qkv, *, y, room):
        q, k, v = self.heads(qkv, 3)
        np.matmul(self.weights(q, k, room), v, out=self.heads(y, 1)[0])

    def backward(self, dy, qkv, *, dqkv, room):
        (q, k, v), (dq, dk, dv), (dy,) = self.heads(qkv, 3), self.heads(dqkv, 3), self.heads(dy, 1)
        weights = self.weights(q, k, room)
        dscores = room[weights.size:2 * weights.size].reshape(weights.shape)
        np.matmul(dy, v.swapaxes(2, 3), out=dscores)
        dscores -= (dscores * weights).sum(axis=3, keepdims=True)
        dscores *= weights
        dscores /= weights.dtype.type(self.D ** 0.5)
        np.matmul(dscores, k, out=dq)
        np.matmul(dscores.swapaxes(2, 3), q, out=dk)
        np.matmul(weights.swapaxes(2, 3), dy, out=dv)

    def heads(self, x, count):
        """The `count` parts of B T (count C), each as an array of shape B H T D on the same memory."""
        batch, time, _ = x.shape
        return x.reshape(batch, time, count, self.H, self.D).transpose(2, 0, 3, 1, 4)

    def weights(self, q, k, room):
        """softmax(q k^T / sqrt(D)), of shape B H T T, made in scratch: a plan keeps none of it."""
        shape = (*q.shape[:3], q.shape[2])
        weights = room[:np.prod(shape)].reshape(shape)
        np.matmul(q, k.swapaxes(2, 3), out=weights)
        weights /= weights.dtype.type(self.D ** 0.5)
        weights -= weights.max(axis=3, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=3, keepdims=True)
        return weights


@dataclass(frozen=True)
class MeanPool(cllm.Layer):
    """The mean of a passage's rows: from here on a row is a passage."""

    C: int

    sites = (cllm.Site("y", "B C", "mean over positions"),)
    reads = {"x": "B T C"}
    across = True

    def forward(self, x, *, y):
        np.mean(x, axis=1, out=y)

    def backward(self, dy, *, dx):
        dx[...] = dy[:, None] / dx.dtype.type(dx.shape[1])


@dataclass(frozen=True)
class Encoder(cllm.Architecture):
    """Pre-norm blocks over words, then the mean of all positions and a class."""

    vocab_size: int = 1024
    classes: int = 2
    n_layers: int = 2
    d_model: int = 32
    n_heads: int = 4
    d_ff: int = 128
    max_seq_len: int = WORDS

    def wire(self, w):
        C, F, narrow = self.d_model, self.d_ff, self.d_model ** -0.5
        x = w.add("embed", layers.Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, std=0.1))
        for number in range(self.n_layers):
            with w.block(number):
                h = w.add("ln1", layers.LayerNorm(C=C), x=x)
                h = w.add("attn.qkv", layers.Linear(I=C, O=3 * C, group="attn", std=narrow), x=h)
                h = w.add("attn", BothWays(H=self.n_heads, D=C // self.n_heads, C=C), qkv=h)
                h = w.add("attn.out", layers.Linear(I=C, O=C, group="attn", std=narrow), x=h)
                x = w.add("res1", layers.Residual(C=C), x=x, branch=h)
                h = w.add("ln2", layers.LayerNorm(C=C), x=x)
                h = w.add("mlp.fc1", layers.Linear(I=C, O=F, group="mlp", std=narrow), x=h)
                h = w.add("mlp.act", layers.Activation(F=F), x=h)
                h = w.add("mlp.fc2", layers.Linear(I=F, O=C, group="mlp", std=F ** -0.5), x=h)
                x = w.add("res2", layers.Residual(C=C), x=x, branch=h)
        x = w.add("ln_f", layers.LayerNorm(C=C), x=x)
        x = w.add("pool", MeanPool(C=C), x=x)
        w.add("head", layers.CrossEntropyHead(V=self.classes, C=C, std=narrow), {"targets": "label"}, x=x)

    def example_batch(self, rng, batch_size, seq_len):
        return {"tokens": rng.integers(0, self.vocab_size, (batch_size, seq_len)),
                "label": rng.integers(0, self.classes, batch_size)}


def passages(vocabulary: int) -> dict[str, np.ndarray]:
    """Words of the novel's passages as numbers (0 fills up, 1 is a rare word), and whether each stands in quotation marks."""
    found = []
    for paragraph in embedded_text().decode().split("\n\n"):
        for number, part in enumerate(paragraph.split('"')):
            words = re.findall(r"[a-z]+|[,.;!?-]", part.lower())
            found += [(words[i:i + WORDS], number % 2) for i in range(0, len(words) - LEAST + 1, WORDS)]
    counts = Counter(word for words, _ in found for word in words)
    number_of = {word: n for n, (word, _) in enumerate(counts.most_common(vocabulary - 2), start=2)}
    tokens = np.zeros((len(found), WORDS), np.int32)
    for row, (words, _) in zip(tokens, found, strict=True):
        row[:len(words)] = [number_of.get(word, 1) for word in words]
    return {"tokens": tokens, "label": np.array([label for _, label in found])}


def main(steps: int = 80, threads: int | None = None) -> list[tuple[float, float]]:
    """Train, and return loss and accuracy on held-out passages: before, and after each quarter of the steps."""
    model = cllm.Model(Encoder(), seed=0)
    data = passages(model.architecture.vocab_size)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(data["label"]))
    held_out = {name: array[order[:HELD_OUT]] for name, array in data.items()}

    executor = cllm.Executor(model, 32, WORDS, strategy=cllm.MemoryBudget("2MB"), num_threads=threads)
    print(executor.plan.table())
    look = cllm.Executor(model, HELD_OUT, WORDS, strategy="cache@50", num_threads=threads)
    optimizer = cllm.AdamW(model, lr=3e-3)
    found = []
    for step in range(steps + 1):
        if step % max(1, steps // 4) == 0:
            right = look.logits(tokens=held_out["tokens"]).argmax(axis=1) == held_out["label"]
            found.append((look.loss(**held_out), float(right.mean())))
            print(f"step {step:4d}: loss {found[-1][0]:.3f}, {found[-1][1]:.1%} of {HELD_OUT} held-out passages are told right")
        if step < steps:
            rows = rng.choice(order[HELD_OUT:], 32, replace=False)
            model.zero_grad()
            executor.loss_and_grad(**{name: array[rows] for name, array in data.items()})
            cllm.clip_grad_norm(model, 1.0)
            optimizer.step()
    print(f"highest byte written: {executor.high_water_bytes:,}, as predicted: {executor.memory.arena_bytes:,}")
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=80)
    progress = main(**vars(options.parse_args()))
