"""Models as users write them, outside the package, for the tests: a language model, pictures, rows of every kind."""
from dataclasses import dataclass

import numpy as np

import cllm
from cllm import layers


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
    vocab_size: int = 31
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
class Parts(cllm.Layer):
    """Positions parted into P pieces of D columns."""

    P: int
    D: int
    C: int  # P * D
    sites = (cllm.Site("y", "B T P D", "pieces"),)
    reads = {"x": "B T C"}

    def forward(self, x, *, y):
        y[...] = x.reshape(y.shape)

    def backward(self, dy, *, dx):
        dx[...] = dy.reshape(dx.shape)


@dataclass(frozen=True)
class Last(cllm.Layer):
    """The last position of each sequence."""

    P: int
    D: int
    sites = (cllm.Site("y", "B P D", "the last position"),)
    reads = {"x": "B T P D"}
    across = True

    def forward(self, x, *, y):
        y[...] = x[:, -1]

    def backward(self, dy, *, dx):
        dx[...] = 0
        dx[:, -1] = dy


@dataclass(frozen=True)
class Mean(cllm.Layer):
    """One row a sequence, whatever rows it had."""

    C: int
    sites = (cllm.Site("y", "B C", "mean"),)
    reads = {"x": "N C"}
    across = True

    def forward(self, x, *, y):
        np.mean(x.reshape(len(y), -1, self.C), axis=1, out=y)

    def backward(self, dy, *, dx):
        part = dx.reshape(len(dy), -1, self.C)
        part[...] = dy[:, None] / dx.dtype.type(part.shape[1])


@dataclass(frozen=True)
class Kinds(cllm.Architecture):
    """Rows of every kind: positions, pieces of positions, pieces of a sequence, sequences; dropout among all of them."""

    vocab_size: int = 11
    max_seq_len: int = 8
    classes: int = 3
    dropout: float = 0.0

    def wire(self, w):
        linear, rate = layers.Linear, self.dropout
        x = w.add("embed", layers.Embedding(V=self.vocab_size, C=12, P=self.max_seq_len, std=0.5))
        with w.block(0):
            h = w.add("parts", Parts(P=3, D=4, C=12), x=x)
            h = w.add("norm", layers.LayerNorm(C=4), x=h)
            h = w.add("fc", linear(I=4, O=4, std=0.5, group="mlp"), x=h)
            h = w.add("drop", layers.Dropout(C=4, rate=rate, stream=1), x=h) if rate else h
        with w.block(1):
            h = w.add("last", Last(P=3, D=4), x=h)
            f = w.add("fc", linear(I=4, O=8, std=0.5, group="mlp"), x=h)
            f = w.add("act", layers.Activation(F=8), x=f)
            f = w.add("back", linear(I=8, O=4, std=0.5), x=f)
            h = w.add("res", layers.Residual(C=4, rate=rate, stream=2), x=h, branch=f)
        with w.block(2):
            h = w.add("mean", Mean(C=4), x=h)
            h = w.add("norm", layers.LayerNorm(C=4), x=h)
            h = w.add("fc", linear(I=4, O=6, std=0.5, group="mlp"), x=h)
            h = w.add("drop", layers.Dropout(C=6, rate=rate, stream=3), x=h) if rate else h
        w.add("head", layers.CrossEntropyHead(V=self.classes, C=6, std=0.5), {"targets": "label"}, x=h)

    def example_batch(self, rng, batch_size, seq_len):
        return {"tokens": rng.integers(0, self.vocab_size, (batch_size, seq_len)),
                "label": rng.integers(0, self.classes, batch_size)}


@dataclass(frozen=True)
class Grid(cllm.Architecture):
    """Four cells a picture, one loss for each; nothing stands in blocks, and no time steps occur."""

    classes: int = 3

    def wire(self, w):
        x = w.add("fc", layers.Linear(I=5, O=6, std=0.5), x=w.feed("cells", "B 4 5"))
        x = w.add("act", layers.Activation(F=6), x=x)
        x = w.add("norm", layers.LayerNorm(C=6), x=x)
        w.add("head", layers.CrossEntropyHead(V=self.classes, C=6, std=0.5), {"targets": "label"}, x=x)

    def example_batch(self, rng, batch_size, seq_len):
        return {"cells": rng.normal(0, 1, (batch_size, 4, 5)), "label": rng.integers(0, self.classes, (batch_size, 4))}
