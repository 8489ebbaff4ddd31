"""`accumulate_weight_gradient`: the weight-gradient kernel for arrays of a user's own."""

import numpy as np

from cllm import _kernels as kernels
from cllm.arrays import aligned_empty
from cllm.errors import DtypeError, LayoutError, ShapeError
from cllm.program.workload import ITEMSIZE
from cllm.threads.counts import checked_threads


def accumulate_weight_gradient(x: np.ndarray, dy: np.ndarray, out: np.ndarray, num_threads: int | None = None) -> np.ndarray:
    """Add x^T dy to `out`, row by row in order, so that any cut of the rows into calls gives the same bits.

    All arrays are C-contiguous and of one dtype, float32 or float64.

    Parameters
    ----------
    x : array of shape N I
    dy : array of shape N O
    out : array of shape I O, or H D D
        ``out += x^T dy``; with shape H D D, x and dy are N (H D) and
        ``out[h, d, i] += sum over n of dy[n, h D + d] * x[n, h D + i]``.
    num_threads : int or None
        None takes the default, see `set_num_threads`.

    Returns
    -------
    array
        `out` itself.

    Raises
    ------
    ShapeError, DtypeError, LayoutError, ConfigError
        `out` is unchanged.
    """
    for name, array in (("x", x), ("dy", dy), ("out", out)):
        _check_array(name, array, out)
    threads = checked_threads(num_threads)
    if x.ndim != 2 or dy.ndim != 2 or len(x) != len(dy):
        raise ShapeError("accumulate_weight_gradient(x, dy)", "must be (N, I) and (N, O) with one N",
                         f"{x.shape} and {dy.shape}", "Flatten batch and time to rows.")
    blocks = out.ndim == 3
    if blocks:
        heads, width, other = out.shape
        fits = width == other and x.shape[1] == dy.shape[1] == heads * width
    else:
        fits = out.shape == (x.shape[1], dy.shape[1])
    if not fits:
        raise ShapeError("accumulate_weight_gradient(out=...)", f"must be {(x.shape[1], dy.shape[1])}, or (H, D, D) with "
                         "H D columns in x and dy", str(out.shape), "Make out with that shape.")
    if not out.size:
        return out
    size = (kernels.block_linear_workspace(len(x), 1, heads, width, threads, out.itemsize) if blocks
            else kernels.linear_workspace(len(x), *out.shape, threads, out.itemsize))
    workspace = aligned_empty(size, out.dtype)
    with kernels.Threads(threads):
        if blocks:
            kernels.block_linear_backward_weight(x, dy, dweight=out[None], dbias=None, workspace=workspace)
        else:
            kernels.linear_backward_weight(x, dy, dweight=out, dbias=None, workspace=workspace)
    return out


def _check_array(name: str, array, out) -> None:
    where = f"accumulate_weight_gradient({name})"
    native = isinstance(array, np.ndarray) and array.dtype.isnative and array.dtype.name in ITEMSIZE
    if not native or array.dtype != getattr(out, "dtype", None):
        got = f"{getattr(array, 'dtype', type(array).__name__)}"
        raise DtypeError(where, "must be a NumPy array of float32 or float64 in native byte order, the same for all", got,
                         "Convert with astype.")
    if not array.flags.c_contiguous or not array.flags.aligned or (array is out and not array.flags.writeable):
        raise LayoutError(where, "must be C-contiguous and aligned, and out writeable", str(array.strides),
                          "Pass np.ascontiguousarray(array), or a writeable out.")
    if array is not out and np.may_share_memory(array, out):
        raise LayoutError(where, "must not share memory with out", "overlapping arrays", "Pass a copy.")
