"""The head and its loss as one layer: logits = x W^T and the mean of -log softmax(logits)[target].

With a bias, a scale f and a soft cap c, logits = c tanh(f (x W^T + b) / c).

The product and the loss run over R rows at a time, so the N x V logits need not exist: backward makes the logits of its
rows, turns them into their gradient in place, and uses it for both products. Forward is only run when a plan keeps the
logits, or when somebody asks for them.

Rows without a target are left out of all that: their loss is 0 and the row of dx zero. Sums add the other rows in the same
order, so this changes no bit of a finite step; only what is NaN in a row that is left out no longer reaches the weights.
"""

from dataclasses import dataclass

import numpy as np

from cllm import _kernels as kernels
from cllm.program.declare import Param, Scratch, Site
from cllm.program.layer import Layer


def _workspace(layer, letters, threads, itemsize):
    return max(kernels.linear_workspace(rows, layer.V, layer.C, threads, itemsize) for rows in (letters["R"], letters["N"]))


def _chunk(layer, letters, threads, itemsize):
    return letters["R"] * layer.V


def _losses(layer, letters, threads, itemsize):
    return letters["R"]


def _used(targets):
    """Numbers of the rows with a target, and their targets."""
    targets = targets.reshape(-1)
    rows = np.flatnonzero(targets != -1).astype(np.int32)
    return rows, targets if len(rows) == len(targets) else targets[rows]


@dataclass(frozen=True, slots=True)
class CrossEntropyHead(Layer):
    """V rows of weights over C channels."""

    V: int
    C: int
    std: float = 0.02
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    compute: str = "float32"

    sites = (Site("logits", "N V", "scores of every token", group="logits", optional=True),)
    costless = ("std",)
    params = (Param("weight", "V C", stored=True), Param("bias", "V", "zeros", when="bias"))
    scratch = (Scratch("workspace", _workspace), Scratch("chunk", _chunk), Scratch("losses", _losses, "float64"))
    reads = {"x": "N C"}
    in_order = True
    spares = {"dweight": (), "dbias": (), "dx": ()}
    narrow = ("x",)
    in_nats = True

    @property
    def rounds(self) -> bool:
        return self.compute == "bfloat16"

    def forward(self, x, weight, bias, *, logits, workspace):
        kernels.linear_backward_input(x, weight, bias, self.rounds, dx=logits, workspace=workspace)
        if self.scale != 1.0 or self.softcap is not None:
            kernels.scale_and_cap(logits, self.scale, self.softcap, y=logits)

    def evaluate(self, x, weight, bias, targets, *, loss, chunk, losses, workspace):
        used, targets = _used(targets)
        if len(used) == len(x):
            self._add_losses(x, weight, bias, targets, loss, chunk, losses, workspace)
            return
        step = min(len(losses), len(chunk) // (self.V + self.C))  # of so many rows, x fits into the chunk behind the logits
        for start in range(0, len(used), max(1, step)):
            some = used[start:start + max(1, step)]
            picked = chunk[len(chunk) - len(some) * self.C:].reshape(len(some), self.C) if step else x[some[0]:some[0] + 1]
            if step:
                kernels.pick_rows(x, some, y=picked)
            self._add_losses(picked, weight, bias, targets[start:start + len(some)], loss, chunk, losses, workspace)

    def _add_losses(self, x, weight, bias, targets, loss, chunk, losses, workspace):
        for rows, logits, part in self._chunks(len(x), chunk, losses):
            self.forward(x[rows], weight, bias, logits=logits, workspace=workspace)
            kernels.cross_entropy_forward(logits, targets[rows], losses=part)
            kernels.accumulate_losses(part, loss=loss)

    def backward(self, x, weight, bias, targets, scale, logits, *, loss, dx, dweight, dbias, chunk, losses, workspace):
        targets = targets.reshape(-1)
        used, wanted = _used(targets)
        skips = dx is not None and len(used) < len(x)
        if skips:  # dx is room for the rows of x with a target, until their gradient takes the place of each
            kernels.pick_rows(x, used, y=dx[:len(used)])
            x, targets = dx[:len(used)], wanted
        for rows, dlogits, part in self._chunks(len(x), chunk, losses):
            if logits is None:
                self.forward(x[rows], weight, bias, logits=dlogits, workspace=workspace)
            elif skips:
                kernels.pick_rows(logits, used[rows], y=dlogits)
            else:
                dlogits[...] = logits[rows]
            kernels.cross_entropy_backward(targets[rows], scale, self.scale, self.softcap, logits=dlogits, losses=part)
            kernels.accumulate_losses(part, loss=loss)
            if dweight is not None:
                kernels.linear_backward_weight(dlogits, x[rows], self.rounds, dweight=dweight, dbias=None,
                                               workspace=workspace)
            if dbias is not None:
                kernels.linear_backward_bias(dlogits, dbias=dbias)
            if dx is not None:
                kernels.linear_forward(dlogits, weight, None, self.rounds, y=dx[rows], workspace=workspace)
        if skips:
            kernels.spread_rows(used, x=dx)

    def _chunks(self, n, chunk, losses):
        step = len(losses)
        for start in range(0, n, step):
            count = min(step, n - start)
            yield slice(start, start + count), chunk[:count * self.V].reshape(count, self.V), losses[:count]

    def forward_flops(self, letters):
        return 2.0 * letters["N"] * self.V * self.C

    def extra_bytes(self, method, letters):
        # each run of R rows reads the weights again, and reads and writes their gradient
        runs = -(-letters["N"] // letters["R"])
        return (runs - 1) * 12.0 * self.V * self.C if method == "backward" else 0.0

    def backward_flops(self, letters):
        return 3.0 * self.forward_flops(letters)

    def spared_flops(self, gradient, letters):
        return 0.0 if gradient == "dbias" else self.forward_flops(letters)
