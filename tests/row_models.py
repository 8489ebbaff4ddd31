"""Models as users write them whose rows are of every kind: positions, pieces of them, sequences, cells of a grid."""
from dataclasses import dataclass

import numpy as np

import cllm
from cllm import layers


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


@dataclass(frozen=True)
class Aimed(cllm.Architecture):
    """A point a row, moved towards the row of its class by squared error; no layer trains these rows."""

    classes: int = 4

    def wire(self, w):
        x = w.add("fc", layers.Linear(I=5, O=6, std=0.5), x=w.feed("point", "B 5"))
        with w.block(0):
            h = w.add("act", layers.Activation(F=6), x=x)
            x = w.add("res", layers.Residual(C=6), x=x, branch=h)
        x = w.add("norm", layers.LayerNorm(C=6), x=x)
        w.add("head", layers.SquaredErrorHead(V=self.classes, C=6, std=0.5), {"targets": "label"}, x=x)

    def example_batch(self, rng, batch_size, seq_len):
        return {"point": rng.normal(0, 1, (batch_size, 5)), "label": rng.integers(0, self.classes, batch_size)}
