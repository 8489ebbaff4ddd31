"""The dtypes of weight files: widened without loss, rounded to nearest even.

bfloat16 is the upper half of a float32, so widening appends 16 zero bits and rounding adds half a unit in the last kept
place, and one more bit where that place is odd, before it cuts.
"""

import numpy as np

from cllm.errors import SnapshotError

# How safetensors calls a dtype, and what its bytes are read as.
RAW = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as config.json and users call them
LARGEST_FLOAT16 = 65504.0


def widened(raw: np.ndarray, code: str) -> np.ndarray:
    """Values of a tensor as its bytes hold them, in a dtype that NumPy knows: bfloat16 becomes float32."""
    if code == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw


def narrowed(values: np.ndarray, code: str, where: str) -> np.ndarray:
    """Values as a file of that dtype holds them: an array whose bytes are the file's.

    Raises
    ------
    SnapshotError
        Where a value is beyond the dtype's range.
    """
    if code == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
        nan = np.isnan(values)
        return np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)
    if code == "F16" and (np.abs(values) > LARGEST_FLOAT16).any():
        raise SnapshotError(where, f"must be at most {LARGEST_FLOAT16:g} in float16", f"{float(np.abs(values).max()):g}",
                            "Save as bfloat16 or float32.")
    return np.ascontiguousarray(values, RAW[code])
