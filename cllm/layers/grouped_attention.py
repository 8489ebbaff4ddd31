"""Softmax attention with grouped queries (Ainslie et al. 2023) over q | k | v: H query heads share K key and value heads.

Queries and keys may be turned by their position (`rope.py`), rows may see a window of the last W keys only, scores may be
capped, c tanh(s / c).
"""

from dataclasses import dataclass

import numpy as np

from cllm import _kernels as kernels
from cllm.arrays import rounded, widened
from cllm.layers.rope import Rope
from cllm.program.declare import Feed, Scratch, Site, Table
from cllm.program.layer import Layer


def _workspace(layer, letters, threads, itemsize):
    return kernels.attention_workspace(letters["B"], letters["T"], layer.H, layer.D, threads, itemsize, kv_heads=layer.K,
                                       bounded=bool(layer.window) or layer.packed, capped=layer.softcap is not None)


@dataclass(frozen=True, slots=True)
class GroupedAttention(Layer):
    """H query heads and K key heads of D channels, P positions.

    Parameters
    ----------
    Z : int
        Pairs of channels that turn, R / 2.
    rope : Rope or None
        None does not turn.
    window : int or None
        Keys that a row sees, itself among them; None is all up to itself.
    scale : float or None
        Of the scores; None is 1 / sqrt(D).
    softcap : float or None
    packed : bool
        Sequences hold several documents, in each of which `positions` count from 0.
    """

    H: int
    K: int
    D: int
    E: int  # H + 2 K
    P: int
    Z: int = 0
    rope: Rope | None = None
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    packed: bool = False

    sites = (
        Site("y", "N HD", "attended values", group="attn"),
        Site("lse", "B H T", "log-sum-exp of each row of scores", group="statistics", role="statistics"),
        Site("probs", "B H T T", "attention probabilities", group="probs", optional=True),
    )
    tables = (
        Table("cos", "P Z", lambda layer: layer.rope.tables(layer.P, 2 * layer.Z)[0], when="turns", by_position=True),
        Table("sin", "P Z", lambda layer: layer.rope.tables(layer.P, 2 * layer.Z)[1], when="turns", by_position=True),
        Table("first", "P", lambda layer: np.maximum(np.arange(layer.P) - layer.window + 1, 0), when="window",
              by_position=True, dtype="int32"),
    )
    scratch = (Scratch("workspace", _workspace),)
    feeds = (Feed("positions", "N", "int32", 0, "P", when="packed"),)
    reads = {"qkv": "N ED"}
    across = True
    narrow = ("qkv", "y")

    @property
    def turns(self) -> bool:
        return self.rope is not None and self.Z > 0

    def forward(self, qkv, cos, sin, first, positions=None, *, y, lse, probs, workspace):
        terms = self._terms(lse, cos, sin, first, positions)
        kernels.attention_forward(qkv, lse.shape[0], self.H, **terms, y=y, lse=lse, workspace=workspace)
        if probs is not None:
            kernels.attention_probabilities(qkv, lse, lse.shape[0], self.H, **terms, probs=probs, workspace=workspace)

    def backward(self, dy, qkv, y, lse, probs, cos, sin, first, positions=None, *, dqkv, workspace):
        terms = self._terms(lse, cos, sin, first, positions)
        kernels.attention_backward(dy, qkv, y, lse, lse.shape[0], self.H, probs, **terms, dqkv=dqkv, workspace=workspace)

    def _terms(self, lse, cos, sin, first, positions):
        return {"kv_heads": self.K, "scale": self.scale, "cos": cos, "sin": sin, "softcap": self.softcap,
                "first": None if first is None else first[:lse.shape[2]], "positions": positions, "documents": self.packed}

    def start(self, room, dtype):
        """Room for turned keys and values of that many rows: arrays of shape K room D."""
        return {name: np.empty((self.K, room, self.D), dtype) for name in ("keys", "values")}

    def extend(self, state, position, qkv, cos, sin, first):
        """Attended values of new rows, which see themselves and what they may of all rows before `position`.

        `cos`, `sin` and `first` begin with the row of `position`.
        """
        n, stop, group, narrow = len(qkv), position + len(qkv), self.H // self.K, qkv.dtype == np.uint16
        qkv = widened(qkv)
        heads = qkv.reshape(n, self.E, self.D).transpose(1, 0, 2)
        q, k, v = np.split(heads, (self.H, self.H + self.K))
        if cos is not None:
            q, k = (self._turned(a, cos[:n], sin[:n]) for a in (q, k))
            q, k = (widened(rounded(a)) for a in (q, k)) if narrow else (q, k)
        state["keys"][:, position:stop], state["values"][:, position:stop] = k, v
        lowest = 0 if first is None else int(first[0])
        keys, values = state["keys"][:, lowest:stop], state["values"][:, lowest:stop]
        q = q.reshape(self.K, group * n, self.D)
        scores = (q @ keys.transpose(0, 2, 1)).reshape(self.H, n, -1)
        scores *= qkv.dtype.type(self.D ** -0.5 if self.scale is None else self.scale)
        if self.softcap is not None:
            scores = self.softcap * np.tanh(scores / self.softcap)
        row, key = np.arange(position, stop)[:, None], np.arange(lowest, stop)
        unseen = key > row if first is None else (key > row) | (key < first[:n, None])
        scores[:, unseen] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights /= weights.sum(axis=-1, keepdims=True)
        y = (weights.reshape(self.K, group * n, -1) @ values).reshape(self.H, n, self.D)
        return np.ascontiguousarray(y.transpose(1, 0, 2).reshape(n, self.H * self.D).astype(qkv.dtype, copy=False))

    def _turned(self, heads, cos, sin):
        """Heads with their first 2 Z channels turned."""
        u, v = heads[..., :self.Z], heads[..., self.Z:2 * self.Z]
        return np.concatenate([u * cos - v * sin, v * cos + u * sin, heads[..., 2 * self.Z:]], axis=-1)

    def forward_flops(self, letters):
        # two products over the causal half of T x T, or over the window
        seen = min(letters["T"] + 1, 2 * self.window) if self.window else letters["T"] + 1
        return 2.0 * letters["B"] * letters["T"] * seen * self.H * self.D

    def backward_flops(self, letters):
        return 2.5 * self.forward_flops(letters)
