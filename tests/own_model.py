"""What a user writes in a file of their own: a layer, two models, a strategy. Small, and run by the tests as it is."""
from dataclasses import dataclass

import numpy as np

import cllm


@dataclass(frozen=True)
class Scale(cllm.Layer):
    C: int
    sites = (cllm.Site("y", "N C", "scaled rows", group="norm"),)
    params = (cllm.Param("weight", "C", "ones"),)
    in_order = True

    def forward(self, x, weight, *, y):
        np.multiply(x, weight, out=y)

    def accumulate(self, dy, x, *, dweight):
        for row in dy * x:
            dweight += row

    def backward(self, dy, weight, *, dx):
        np.multiply(dy, weight, out=dx)


@dataclass(frozen=True)
class Mine(cllm.Architecture):
    vocab_size: int = 31  # too few for a text
    n_layers: int = 3
    C: int = 8
    max_seq_len: int = 16

    def wire(self, w):
        x = w.add("embed", cllm.layers.Embedding(V=self.vocab_size, C=self.C, P=self.max_seq_len, kind="none"),
                  {"weight": "tok_emb.weight"})
        for i in range(self.n_layers):
            with w.block(i):
                h = w.add("norm", Scale(C=self.C), x=x)
                h = w.add("fc", cllm.layers.Linear(I=self.C, O=self.C, group="mlp"), x=h)
                x = w.add("res", cllm.layers.Residual(C=self.C), x=x, branch=h)
        w.add("head", cllm.layers.CrossEntropyHead(V=self.vocab_size, C=self.C), {"weight": "tok_emb.weight"}, x=x)


@dataclass(frozen=True)
class Class(cllm.Layer):
    """Weighted squared distance of each sequence's features to a learned row of its class; no T occurs."""

    V: int
    C: int
    std: float = 0.5
    sites = (cllm.Site("scores", "B V", "minus squared distances", optional=True),)
    params = (cllm.Param("weight", "V C"),)
    feeds = (cllm.Feed("label", "B", "int32", 0, "V"), cllm.Feed("importance", "B", "", 0))
    reads = {"x": "N C"}
    in_order = True

    def divisor(self, importance):
        return importance.sum(dtype=np.float64)

    def forward(self, x, weight, *, scores):
        scores[...] = -((x[:, None] - weight) ** 2).sum(-1)

    def evaluate(self, x, weight, label, importance, *, loss):
        for row, k, w in zip(x, label, importance, strict=True):
            loss += float(w) * float(((row - weight[k]) ** 2).sum())

    def backward(self, x, weight, label, importance, scale, *, loss, dx, dweight):
        self.evaluate(x, weight, label, importance, loss=loss)
        for i, (row, k, w) in enumerate(zip(x, label, importance, strict=True)):
            dx[i] = 2 * w * x.dtype.type(scale[0]) * (row - weight[k])
            dweight[k] -= dx[i]


@dataclass(frozen=True)
class Pictures(cllm.Architecture):
    """Features of a picture through two products; fed by name, without time steps."""

    pixels: int = 12
    C: int = 6
    classes: int = 4

    def wire(self, w):
        picture = w.feed("picture", f"N {self.pixels}", low=0.0, high=1.5)
        x = w.add("fc", cllm.layers.Linear(I=self.pixels, O=self.C, std=0.5), x=picture)
        with w.block(0):
            h = w.add("norm", cllm.layers.LayerNorm(C=self.C), x=x)
            x = w.add("res", cllm.layers.Residual(C=self.C), x=x, branch=h)
        w.add("class", Class(V=self.classes, C=self.C), x=x)

    def example_batch(self, rng, batch_size, seq_len):
        return {"picture": rng.uniform(0, 1, (batch_size, self.pixels)), "label": rng.integers(0, self.classes, batch_size),
                "importance": rng.uniform(0.5, 2, batch_size)}


@dataclass(frozen=True)
class Last:
    """Caches the last blocks, recomputes those before."""

    count: int = 1

    def decide(self, ledger):
        first = ledger.n_blocks - self.count
        return cllm.Plan(tuple(cllm.Tape(b) if b >= first else cllm.Segment((cllm.Tape(b),)) for b in range(ledger.n_blocks)))
