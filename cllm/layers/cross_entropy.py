"""The head and its loss as one layer: logits = x W^T and the mean of -log softmax(logits)[target].

With a bias, a scale f and a soft cap c, logits = c tanh(f (x W^T + b) / c).

The product and the loss run over R rows at a time, so the N x V logits need not exist: backward makes the logits of its
rows, turns them into their gradient in place, and uses it for both products. Forward is only run when a plan keeps the
logits, or when somebody asks for them.

Rows without a target are left out of all that: their loss is 0 and the row of dx zero. Sums add the other rows in the same
order, so this changes no bit of a finite step; only what is NaN in a row that is left out no longer reaches the weights.

Where sums over rows are in units, counted from the start of each sequence, runs of rows end where units do, and a sequence
with a row without a target is added in a chain: so neither R nor what else is in the batch can be seen.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from cllm import _kernels as kernels
from cllm.program.declare import Param, Scratch, Site
from cllm.program.dims import COMPUTES, NARROW, UNIT, UNITS
from cllm.program.layer import Layer


def _workspace(layer, letters, threads, itemsize):
    return max(kernels.linear_workspace(rows, layer.V, layer.C, threads, itemsize) for rows in (letters["R"], letters["N"]))


def _step(layer, letters):
    """Rows in work at once: R, or whole units of them."""
    return letters["R"] if layer.compute != UNITS else min(-(-letters["R"] // UNIT) * UNIT, letters["N"])


def _chunk(layer, letters, threads, itemsize):
    return _step(layer, letters) * layer.V


def _losses(layer, letters, threads, itemsize):
    return _step(layer, letters)


def _cuts(n, sequence, step):
    """Cut n rows of sequences into runs of at most `step`: as many whole sequences as they hold, or parts of one."""
    if sequence <= step:
        sequence = step // max(sequence, 1) * sequence
    for first in range(0, n, max(sequence, 1)):
        end = min(first + sequence, n)
        yield from (slice(start, min(start + step, end)) for start in range(first, end, step))


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
    def rounds(self) -> int:
        return COMPUTES.index(self.compute)

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
        for rows in _cuts(len(x), len(x), len(losses)):
            logits, part = self._room(rows, chunk, losses)
            self.forward(x[rows], weight, bias, logits=logits, workspace=workspace)
            kernels.cross_entropy_forward(logits, targets[rows], losses=part)
            kernels.accumulate_losses(part, loss=loss)

    def backward(self, x, weight, bias, targets, scale, logits, sequence_rows, *, loss, dx, dweight, dbias, chunk, losses,
                 workspace):
        targets = targets.reshape(-1)
        used, wanted = _used(targets)
        skips = dx is not None and len(used) < len(x)
        if skips:  # dx is room for the rows of x with a target, until their gradient takes the place of each
            kernels.pick_rows(x, used, y=dx[:len(used)])
            x = dx[:len(used)]
        runs = self._runs(targets, len(x), sequence_rows, len(losses))
        targets = wanted if skips else targets
        for rows, rounds in runs:
            dlogits, part = self._room(rows, chunk, losses)
            if logits is None:
                self.forward(x[rows], weight, bias, logits=dlogits, workspace=workspace)
            elif skips:
                kernels.pick_rows(logits, used[rows], y=dlogits)
            else:
                dlogits[...] = logits[rows]
            kernels.cross_entropy_backward(targets[rows], scale, self.scale, self.softcap, logits=dlogits, losses=part)
            kernels.accumulate_losses(part, loss=loss)
            if dweight is not None:
                kernels.linear_backward_weight(dlogits, x[rows], rounds, sequence_rows, dweight=dweight, dbias=None,
                                               workspace=workspace)
            if dbias is not None:
                kernels.linear_backward_bias(dlogits, dbias=dbias)
            if dx is not None:
                kernels.linear_forward(dlogits, weight, None, self.rounds, y=dx[rows], workspace=workspace)
        if skips:
            kernels.spread_rows(used, x=dx)

    def _room(self, rows, chunk, losses):
        """Of the scratch what a run of rows takes: for its logits and its losses."""
        count = rows.stop - rows.start
        return chunk[:count * self.V].reshape(count, self.V), losses[:count]

    def _runs(self, targets, n, sequence, step):
        """The n rows in work, run by run, and how each is added to the gradient of the weights (`rounds` of the kernel).

        They are those with a target, or all that `targets` has.
        """
        if self.compute != UNITS:
            yield from ((rows, self.rounds) for rows in _cuts(n, n, step))
            return
        begin, left_out = 0, n < len(targets)
        for whole, some in groupby((targets != -1).reshape(-1, sequence), key=np.all):
            count = sum(int(row.sum()) if left_out else sequence for row in some)
            for rows in _cuts(count, sequence if whole else count, step):
                yield slice(begin + rows.start, begin + rows.stop), self.rounds if whole else COMPUTES.index(NARROW)
            begin += count

    def forward_flops(self, letters):
        return 2.0 * letters["N"] * self.V * self.C

    def extra_bytes(self, method, letters):
        # each run of rows reads the weights again, and reads and writes their gradient
        runs = -(-letters["N"] // _step(self, letters))
        return (runs - 1) * 12.0 * self.V * self.C if method == "backward" else 0.0

    def backward_flops(self, letters):
        return 3.0 * self.forward_flops(letters)

    def spared_flops(self, gradient, letters):
        return 0.0 if gradient == "dbias" else self.forward_flops(letters)
