"""Inputs of the kernel cases: the same numbers for every library, by seed, so that results can be compared."""

import numpy as np


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins at a cache line, as every library's own arrays do but NumPy's."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """float32 array of that shape from N(0, scale^2)."""
    return aligned(rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))


def generator() -> np.random.Generator:
    """A fresh generator; every case begins with one."""
    return np.random.default_rng(1)


def product(n: int, n_in: int, n_out: int) -> dict[str, np.ndarray]:
    """Operands of the three matrix products of a linear layer."""
    rng = generator()
    return {"x": normal(rng, n, n_in), "dy": normal(rng, n, n_out), "weight": normal(rng, n_in, n_out, scale=0.02),
            "bias": normal(rng, n_out)}


def block_product(n: int, heads: int, head_dim: int) -> dict[str, np.ndarray]:
    """Operands of the block-diagonal product with one part."""
    rng = generator()
    channels = heads * head_dim
    return {"x": normal(rng, n, channels), "dy": normal(rng, n, channels),
            "weight": normal(rng, 1, heads, head_dim, head_dim, scale=0.02)}


def attention(batch: int, heads: int, time: int, head_dim: int) -> dict[str, np.ndarray]:
    """qkv of shape N 3C and dy of shape N C."""
    rng = generator()
    channels = heads * head_dim
    return {"qkv": normal(rng, batch * time, 3 * channels), "dy": normal(rng, batch * time, channels)}


def grouped_attention(batch: int, heads: int, kv_heads: int, time: int, head_dim: int) -> dict[str, np.ndarray]:
    """qkv of shape N (H+2K)D and dy of shape N HD."""
    rng = generator()
    return {"qkv": normal(rng, batch * time, (heads + 2 * kv_heads) * head_dim),
            "dy": normal(rng, batch * time, heads * head_dim)}


def heads_of(qkv: np.ndarray, batch: int, heads: int) -> list[np.ndarray]:
    """q, k, v (or whatever has whole C columns) as contiguous arrays of shape B H T D."""
    channels = heads * (qkv.shape[1] // (3 * heads)) if qkv.shape[1] % (3 * heads) == 0 else qkv.shape[1]
    parts = [qkv[:, start:start + channels] for start in range(0, qkv.shape[1], channels)]
    return [aligned(part.reshape(batch, -1, heads, channels // heads).transpose(0, 2, 1, 3))
            for part in parts]


def head(n: int, channels: int, vocabulary: int) -> dict[str, np.ndarray]:
    """h of shape N C, the tied embedding of shape V C, and a target for each row."""
    rng = generator()
    return {"h": normal(rng, n, channels), "embedding": normal(rng, vocabulary, channels, scale=0.02),
            "targets": rng.integers(0, vocabulary, n).astype(np.int32)}


def rows(n: int, channels: int) -> dict[str, np.ndarray]:
    """Operands of what works row by row."""
    rng = generator()
    return {"x": normal(rng, n, channels), "dy": normal(rng, n, channels),
            "weight": aligned(1 + normal(rng, channels, scale=0.1)), "bias": normal(rng, channels, scale=0.1)}


def gated(n: int, width: int) -> dict[str, np.ndarray]:
    """gate | up of shape N 2F and dy of shape N F."""
    rng = generator()
    return {"x": normal(rng, n, 2 * width), "dy": normal(rng, n, width)}


def bfloat16(n: int, channels: int) -> np.ndarray:
    """The bits of bfloat16 numbers, as uint16 of shape N C."""
    return (rows(n, channels)["x"].view(np.uint32) >> 16).astype(np.uint16)


def parameters(elements: int) -> dict[str, np.ndarray]:
    """Parameters, their gradient and both moments, as one row each."""
    rng = generator()
    return {"param": normal(rng, elements), "grad": normal(rng, elements), "m": normal(rng, elements, scale=0.01),
            "v": aligned(normal(rng, elements, scale=0.01) ** 2)}
