"""Affine map of every row with low-rank adapters (Hu et al. 2021): y = x W + b, and to some columns scale (drop(x) A^T) B.

Adapter j has the K rows of A from j K on, and a run of the columns of B that it adds to one slice of y: so q, k and v of one
product are adapted apart. All of them are computed together: with S the U x O matrix that is scale B_j at the rows of A_j
and the columns of slice j, and zero elsewhere,

    u = drop(x) A^T       y += u S
    g = dy S^T            dA += g^T drop(x)      dB_j += (scale u_j)^T dy_j      dx += undrop(g A)
"""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.program.declare import Param, Scratch, Site
from cllm.program.dims import COMPUTES
from cllm.program.layer import Layer


def _workspace(layer, letters, threads, itemsize):
    rows = letters["N"]
    shapes = [(rows, layer.I, layer.O)]
    for columns in (layer.I, layer.O):
        shapes += [(rows, layer.U, columns), (layer.U, rows, columns)]
    return max(kernels.linear_workspace(*shape, threads, itemsize) for shape in shapes)


@dataclass(frozen=True, slots=True)
class AdaptedLinear(Layer):
    """I columns to O columns.

    Parameters
    ----------
    U, K, W : int
        Rows of A, rows of each adapter, columns of B.
    slices : tuple of (int, int)
        The columns of y to which each adapter adds, in rising order, none in two.
    scale : float
    rate : float
        Probability of dropping an element of what the adapters read.
    stream : int
        Number of that mask.
    bias, group, std, compute : as of `Linear`; in bfloat16 the operands of all products are rounded, those of adapters too,
        and x and y stay float32
    """

    I: int  # noqa: E741 (the letter of the shape)
    O: int  # noqa: E741
    U: int
    K: int
    W: int
    slices: tuple[tuple[int, int], ...]
    scale: float
    rate: float = 0.0
    stream: int = 0
    bias: bool = True
    group: str = ""
    std: float = 0.02
    compute: str = "float32"

    sites = (Site("y", "N O", "x W + b, with what adapters add"),)
    costless = ("group", "std", "scale", "stream")
    params = (Param("weight", "I O", stored=True), Param("bias", "O", "zeros", when="bias"),
              Param("lora_a", "U I", "fan_in"), Param("lora_b", "K W", "zeros"))
    scratch = (Scratch("workspace", _workspace),
               Scratch("low", lambda layer, letters, threads, itemsize: letters["N"] * layer.U),
               Scratch("spread", lambda layer, letters, threads, itemsize: layer.U * layer.O),
               Scratch("dropped", lambda layer, letters, threads, itemsize: letters["N"] * layer.I if layer.rate else 0))
    reads = {"x": "N I"}
    in_order = True
    spares = {"dweight": ("x",), "dbias": (), "dlora_a": ("x",), "dlora_b": ("x",)}

    @property
    def rounds(self) -> int:
        return COMPUTES.index(self.compute)

    def forward(self, x, weight, bias, lora_a, lora_b, key, *, y, workspace, low, spread, dropped):
        kernels.linear_forward(x, weight, bias, self.rounds, y=y, workspace=workspace)
        u = low[:self.U * len(x)].reshape(self.U, len(x))  # turned, as the product that adds to y takes it
        kernels.linear_backward_input(lora_a, self._dropped(x, key, dropped), None, self.rounds, dx=u, workspace=workspace)
        kernels.linear_backward_weight(u, self._spread(lora_b, spread), self.rounds, dweight=y, dbias=None, workspace=workspace)

    def accumulate(self, dy, x, lora_a, lora_b, key, sequence_rows, *, dweight, dbias, dlora_a, dlora_b, workspace, low, spread,
                   dropped):
        if dweight is not None:
            kernels.linear_backward_weight(x, dy, self.rounds, sequence_rows, dweight=dweight, dbias=dbias,
                                           workspace=workspace)
        elif dbias is not None:
            kernels.linear_backward_bias(dy, dbias=dbias)
        if dlora_a is None and dlora_b is None:
            return
        rows = low[:len(x) * self.U].reshape(len(x), self.U)
        x = self._dropped(x, key, dropped)
        if dlora_a is not None:
            kernels.linear_backward_input(dy, self._spread(lora_b, spread), None, self.rounds, dx=rows, workspace=workspace)
            kernels.linear_backward_weight(rows, x, self.rounds, sequence_rows, dweight=dlora_a, dbias=None,
                                           workspace=workspace)
        if dlora_b is not None:
            kernels.linear_backward_input(x, lora_a, None, self.rounds, dx=rows, workspace=workspace)
            rows *= rows.dtype.type(self.scale)
            sums = self._spread(dlora_b, spread, 1.0)  # begins with what it holds, so that rows are added in order
            kernels.linear_backward_weight(rows, dy, self.rounds, sequence_rows, dweight=sums, dbias=None,
                                           workspace=workspace)
            for rows, columns, at in self.adapters():
                dlora_b[:, columns] = sums[rows, at]

    def backward(self, dy, weight, lora_a, lora_b, key, *, dx, workspace, low, spread, dropped):
        kernels.linear_backward_input(dy, weight, None, self.rounds, dx=dx, workspace=workspace)
        spread = self._spread(lora_b, spread)
        if not self.rate:
            g = low[:self.U * len(dy)].reshape(self.U, len(dy))
            kernels.linear_backward_input(spread, dy, None, self.rounds, dx=g, workspace=workspace)
            kernels.linear_backward_weight(g, lora_a, self.rounds, dweight=dx, dbias=None, workspace=workspace)
            return
        g = low[:len(dy) * self.U].reshape(len(dy), self.U)
        kernels.linear_backward_input(dy, spread, None, self.rounds, dx=g, workspace=workspace)
        dropped = dropped[:dx.size].reshape(dx.shape)
        kernels.linear_forward(g, lora_a, None, self.rounds, y=dropped, workspace=workspace)
        kernels.dropout_backward(dropped, key, self.stream, self.rate, dx=dropped)
        kernels.add_in_place(dropped.reshape(-1), y=dx.reshape(-1))

    def _dropped(self, x, key, dropped):
        """What adapters read."""
        if not self.rate or key is None:
            return x
        dropped = dropped[:x.size].reshape(x.shape)
        kernels.dropout_forward(x, key, self.stream, self.rate, y=dropped)
        return dropped

    def _spread(self, compact, spread, scale=None):
        """The U x O matrix of a K x W one: each adapter's part at its rows and columns, `scale` times, zero elsewhere."""
        spread = spread[:self.U * self.O].reshape(self.U, self.O)
        spread[...] = 0
        scale = compact.dtype.type(self.scale if scale is None else scale)
        for rows, columns, at in self.adapters():
            spread[rows, at] = compact[:, columns] * scale
        return spread

    def adapters(self):
        """Of each adapter the rows of A, the columns of B, and the columns of y."""
        start = 0
        for j, (first, stop) in enumerate(self.slices):
            yield slice(j * self.K, (j + 1) * self.K), slice(start, start + stop - first), slice(first, stop)
            start += stop - first

    def forward_flops(self, letters):
        return 2.0 * letters["N"] * (self.I * self.O + self.U * (self.I + self.O))

    def accumulate_flops(self, letters):
        return 2.0 * letters["N"] * (self.I * self.O + 2 * self.U * (self.I + self.O))

    def spared_flops(self, gradient, letters):
        low = 2.0 * letters["N"] * self.U * (self.I + self.O)
        return {"dweight": 2.0 * letters["N"] * self.I * self.O, "dlora_a": low, "dlora_b": low}.get(gradient, 0.0)
