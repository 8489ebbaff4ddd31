"""Causal softmax attention over q | k | v side by side (Vaswani et al. 2017); T x T never exists unless it is asked for."""

from dataclasses import dataclass

import numpy as np

from cllm import _kernels as kernels
from cllm.arrays import widened
from cllm.program.declare import Feed, Scratch, Site
from cllm.program.layer import Layer


def _workspace(layer, letters, threads, itemsize):
    return kernels.attention_workspace(letters["B"], letters["T"], layer.H, layer.D, threads, itemsize, bounded=layer.packed)


@dataclass(frozen=True, slots=True)
class Attention(Layer):
    """H heads of D channels; `packed`: sequences hold several documents, in each of which `positions` count from 0."""

    H: int
    D: int
    C: int  # H * D
    packed: bool = False

    sites = (
        Site("y", "N C", "attended values", group="attn"),
        Site("lse", "B H T", "log-sum-exp of each row of scores", group="statistics", role="statistics"),
        Site("probs", "B H T T", "attention probabilities", group="probs", optional=True),
    )
    scratch = (Scratch("workspace", _workspace),)
    feeds = (Feed("positions", "N", "int32", 0, when="packed"),)
    reads = {"qkv": "N 3C"}
    across = True
    narrow = ("qkv", "y")

    def forward(self, qkv, positions=None, *, y, lse, probs, workspace):
        where = {"positions": positions, "documents": self.packed}
        kernels.attention_forward(qkv, lse.shape[0], self.H, **where, y=y, lse=lse, workspace=workspace)
        if probs is not None:
            kernels.attention_probabilities(qkv, lse, lse.shape[0], self.H, **where, probs=probs, workspace=workspace)

    def backward(self, dy, qkv, y, lse, probs, positions=None, *, dqkv, workspace):
        kernels.attention_backward(dy, qkv, y, lse, lse.shape[0], self.H, probs, positions=positions, documents=self.packed,
                                   dqkv=dqkv, workspace=workspace)

    def start(self, room, dtype):
        """Room for keys and values of that many rows: arrays of shape H room D."""
        return {name: np.empty((self.H, room, self.D), dtype) for name in ("keys", "values")}

    def extend(self, state, position, qkv):
        """Attended values of new rows, which see themselves and all rows before `position`."""
        n, stop, qkv = len(qkv), position + len(qkv), widened(qkv)
        q, k, v = qkv.reshape(n, 3, self.H, self.D).transpose(1, 2, 0, 3)
        state["keys"][:, position:stop], state["values"][:, position:stop] = k, v
        if position == 0:
            return self._first(qkv)
        scores = q @ state["keys"][:, :stop].transpose(0, 2, 1) / np.sqrt(self.D).astype(qkv.dtype)
        if n > 1:
            scores[:, np.arange(n)[:, None] + position < np.arange(stop)] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.ascontiguousarray((weights @ state["values"][:, :stop]).transpose(1, 0, 2).reshape(n, self.C))

    def _first(self, qkv):
        """Rows that see only themselves: forward over one sequence."""
        y, lse = np.empty((len(qkv), self.C), qkv.dtype), np.empty((1, self.H, len(qkv)), qkv.dtype)
        size = kernels.attention_workspace(1, len(qkv), self.H, self.D, kernels.get_threads(), qkv.itemsize)
        self.forward(qkv, y=y, lse=lse, probs=None, workspace=np.empty(size, qkv.dtype))
        return y

    def forward_flops(self, letters):
        # two products over the causal half of T x T
        return 2.0 * letters["B"] * letters["T"] * (letters["T"] + 1) * self.C

    def backward_flops(self, letters):
        return 2.5 * self.forward_flops(letters)
