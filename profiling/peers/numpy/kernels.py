"""NumPy's side of the kernel cases: what a NumPy user writes, with preallocated outputs where NumPy takes them.

Here stand products, attention and the head; `elementwise.py` has what works element by element.
"""

from collections.abc import Callable

import numpy as np

from peers import inputs, process
from peers.numpy import elementwise


def cases(threads: int) -> dict[str, Callable]:
    """By name of the kernel, a function of the shape that returns the call and its results. Threads are NumPy's own
    affair: the environment of a contestant caps them."""
    ours = (linear_backward_weight, linear_forward, linear_backward_input, block_backward_weight, attention,
            window_attention, head)
    return {case.__name__: case for case in ours} | {"grouped_attention": window_attention} | elementwise.CASES


def linear_backward_weight(n, n_in, n_out):
    a = inputs.product(n, n_in, n_out)
    dweight = np.zeros_like(a["weight"])

    def call():
        nonlocal dweight
        dweight += a["x"].T @ a["dy"]

    return call, [dweight]


def linear_forward(n, n_in, n_out):
    a = inputs.product(n, n_in, n_out)
    y = np.zeros_like(a["dy"])

    def call():
        np.matmul(a["x"], a["weight"], out=y)
        np.add(y, a["bias"], out=y)

    return call, [y]


def linear_backward_input(n, n_in, n_out):
    a = inputs.product(n, n_in, n_out)
    dx = np.zeros_like(a["x"])
    return lambda: np.matmul(a["dy"], a["weight"].T, out=dx), [dx]


def block_backward_weight(n, heads, head_dim):
    a = inputs.block_product(n, heads, head_dim)
    x, dy = (a[name].reshape(n, heads, head_dim) for name in ("x", "dy"))
    dweight = np.zeros((heads, head_dim, head_dim), np.float32)

    def call():
        nonlocal dweight
        dweight += np.matmul(dy.transpose(1, 2, 0), x.transpose(1, 0, 2))

    return call, [dweight]


def attention(batch, heads, time, head_dim):
    return _attention(inputs.attention(batch, heads, time, head_dim), batch, heads, heads, time, head_dim, time)


def window_attention(batch, heads, kv_heads, time, head_dim, window=None):
    arrays = inputs.grouped_attention(batch, heads, kv_heads, time, head_dim)
    return _attention(arrays, batch, heads, kv_heads, time, head_dim, window or time)


def _attention(a, batch, heads, kv_heads, time, head_dim, window):
    """Forward and backward, of shape B K H/K T D for queries and B K 1 T D for keys and values."""
    qkv = a["qkv"].reshape(batch, time, -1, head_dim).transpose(0, 2, 1, 3)
    q, k, v = (inputs.aligned(part.reshape(batch, kv_heads, -1, time, head_dim))
               for part in np.split(qkv, (heads, heads + kv_heads), axis=1))
    dy = inputs.aligned(a["dy"].reshape(batch, time, heads, head_dim).transpose(0, 2, 1, 3).reshape(q.shape))
    ahead = np.arange(time)[:, None] - np.arange(time)
    masked = np.where((ahead >= 0) & (ahead < window), np.float32(0), np.float32(-np.inf))
    scale = np.float32(head_dim ** -0.5)
    y, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)

    def call():
        p = np.matmul(q, k.swapaxes(3, 4))
        p *= scale
        p += masked
        p -= p.max(axis=4, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=4, keepdims=True)
        np.matmul(p, v, out=y)
        np.sum(np.matmul(p.swapaxes(3, 4), dy), axis=2, keepdims=True, out=dv)
        ds = np.matmul(dy, v.swapaxes(3, 4))
        ds -= (dy * y).sum(axis=4, keepdims=True)
        ds *= p
        ds *= scale
        np.matmul(ds, k, out=dq)
        np.sum(np.matmul(ds.swapaxes(3, 4), q), axis=2, keepdims=True, out=dk)

    return call, [y, dq, dk, dv]


def head(n, channels, vocabulary):
    a = inputs.head(n, channels, vocabulary)
    dh, dembedding = np.zeros_like(a["h"]), np.zeros_like(a["embedding"])

    def call():
        nonlocal dembedding
        p = a["h"] @ a["embedding"].T
        p -= p.max(axis=1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(n), a["targets"]] -= 1
        p /= n
        np.matmul(p, a["embedding"], out=dh)
        dembedding += p.T @ a["h"]

    return call, [dh, dembedding]


if __name__ == "__main__":
    process.serve_kernels(cases)
