"""Attention whose own products take operands in bfloat16, too: a layer in NumPy, for experiments on what that does to training.

Scores, exponentials, their sums, delta and the results of products are float32. What is rounded to nearest on its way into a
product, beside q, k and v: the exponentials P before they are divided by their sum, dy, and dS.

    y = (r(P) V) / sum P        dV = r(P / sum P)^T r(dy)        dP = r(dy) V^T        dS = P / sum P * (dP - sum dy y)
    dQ = r(dS) K / sqrt(D)      dK = r(dS)^T Q / sqrt(D)

It writes T x T arrays and takes several times what the compiled one takes: no speed is to be read off it.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import cllm
from cllm import _kernels as kernels
from cllm import arrays
from cllm.layers import Attention


def rounded(x: np.ndarray) -> np.ndarray:
    """r(x): each element to the nearest bfloat16, as float32."""
    return arrays.widened(arrays.rounded(x))


@dataclass(frozen=True, slots=True)
class NarrowAttention(Attention):
    """`Attention`, without packed sequences, as this module says."""

    def forward(self, qkv, *, y, lse, probs, workspace):
        q, k, v = self._heads(qkv, lse, 3)
        scores = self._scores(q, k)
        top = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        lse[...] = (top + np.log(total))[..., 0]
        kernels.copy_values(self._rows(rounded(weights) @ v / total), y=y)

    def backward(self, dy, qkv, y, lse, probs, *, dqkv, workspace):
        (q, k, v), (out,), (dout,) = self._heads(qkv, lse, 3), self._heads(y, lse, 1), self._heads(dy, lse, 1)
        p = np.exp(self._scores(q, k) - lse[..., None])
        delta = (dout * out).sum(axis=-1, keepdims=True)
        narrow = rounded(dout)
        ds = rounded(p * (narrow @ v.swapaxes(-1, -2) - delta))
        scale = np.float32(1 / np.sqrt(self.D))
        dq, dk, dv = ds @ k * scale, ds.swapaxes(-1, -2) @ q * scale, rounded(p).swapaxes(-1, -2) @ narrow
        dqkv[...] = np.concatenate([self._rows(part) for part in (dq, dk, dv)], axis=1)

    def _heads(self, x, lse, parts):
        """Each part of rows of N times its channels, in float32: arrays of shape B H T D."""
        batch, _, time = lse.shape
        return arrays.widened(x).reshape(batch, time, parts, self.H, self.D).transpose(2, 0, 3, 1, 4)

    def _scores(self, q, k):
        scores = q @ k.swapaxes(-1, -2) * np.float32(1 / np.sqrt(self.D))
        time = scores.shape[-1]
        scores[..., np.triu(np.ones((time, time), bool), 1)] = -np.inf
        return scores

    def _rows(self, x):
        batch, _, time, _ = x.shape
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3).reshape(batch * time, self.C))


class _Wiring:
    """Hands on what is wired, with attention replaced."""

    def __init__(self, w: cllm.Wiring):
        self._w = w

    def __getattr__(self, name):
        return getattr(self._w, name)

    def add(self, name, layer, *shared, **reads):
        if isinstance(layer, Attention):
            layer = NarrowAttention(layer.H, layer.D, layer.C)
        return self._w.add(name, layer, *shared, **reads)


@dataclass(frozen=True, slots=True)
class NarrowConfig(cllm.ModelConfig):
    """A `ModelConfig` whose attention is `NarrowAttention`."""

    family: ClassVar[str] = "gpt-narrow-attention"

    def wire(self, w: cllm.Wiring) -> None:
        cllm.ModelConfig.wire(self, _Wiring(w))
