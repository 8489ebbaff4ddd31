"""Quantised blocks of GGUF files, expanded: 32 weights share a float16 scale d, in Q4_1 also a least value m.

    Q8_0   34 bytes: d, 32 int8 q                        w = d q
    Q4_0   18 bytes: d, 16 bytes of two 4-bit q          w = d (q - 8)
    Q4_1   20 bytes: d, m, 16 bytes of two 4-bit q       w = d q + m

The low halves of the 16 bytes are weights 0 .. 15, the high ones 16 .. 31. Formulas are evaluated in float32, each operation
rounded, as GGML's own reference does.
"""

import numpy as np

WEIGHTS = 32  # of a block
BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}


def expanded(raw: np.ndarray, kind: str) -> np.ndarray:
    """The weights of some blocks.

    Parameters
    ----------
    raw : uint8 array of shape (..., blocks * BYTES[kind])
        Whole blocks along the last axis.
    kind : {"Q8_0", "Q4_0", "Q4_1"}

    Returns
    -------
    float32 array of shape (..., blocks * 32)
    """
    blocks = np.ascontiguousarray(raw).reshape(-1, BYTES[kind])
    scale = blocks[:, :2].view("<f2").astype(np.float32)
    if kind == "Q8_0":
        weights = blocks[:, 2:].view(np.int8).astype(np.float32) * scale
    else:
        packed = blocks[:, -16:]
        q = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
        weights = (q - 8) * scale if kind == "Q4_0" else q * scale + blocks[:, 2:4].view("<f2").astype(np.float32)
    return weights.reshape(*raw.shape[:-1], -1)
