"""Adafactor: second moments as means of rows and columns."""

from math import inf, sqrt

import numpy as np

from cllm import _kernels as kernels
from cllm.checks import checked_flag, checked_real
from cllm.models.model import Model
from cllm.optim.base import Optimizer
from cllm.program.optimizer_states import columns

SQUARES_EPS = 1e-30  # added to squares of gradients; the paper's eps1
LEAST_SCALE = 1e-3  # of a parameter, so that zeros can move; the paper's eps2


class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018) without momentum: its state is a row and a column for each matrix.

    **Inexact**: the second moment of an element is not kept but estimated, from the means of its row and of its column. With g
    the gradient, t the number of the step from 1 and b = 1 - t^(-decay_exponent),
    row = b row + (1 - b) mean(g^2 + 1e-30) over columns, column alike over rows, u = g / sqrt(row column / mean(row)), and
    p = p - lr s u / max(1, rms(u) / clip_threshold) - lr weight_decay p, where s = max(1e-3, rms(p)) with
    `scale_by_parameter`. Bits are the same in every run, with any threads and under every plan.

    Parameters
    ----------
    model : Model
    lr : float
        With `scale_by_parameter` the part of its own size that a parameter moves by: the paper takes at most 1e-2.
    clip_threshold : float
        Greatest root mean square of u; above 0.
    decay_exponent : float
        Of the step in b; in (0, 1].
    scale_by_parameter : bool
    weight_decay : float
        Decoupled, for arrays named ``*.weight`` with two or more axes.
    names : as of `Adam`

    Attributes
    ----------
    state : Mapping
        ``name -> (row, column)``: an element for each row and each column, where an array of several axes is a matrix whose
        columns are its last axis, and one of a single axis has one column.
    """

    couples_decay = False

    def __init__(self, model: Model, lr: float = 1e-2, clip_threshold: float = 1.0, decay_exponent: float = 0.8,
                 scale_by_parameter: bool = True, weight_decay: float = 0.0, names: str | tuple[str, ...] | None = None):
        super().__init__(model, lr, weight_decay, names)
        self.clip_threshold = checked_real("Adafactor(clip_threshold=...)", clip_threshold, 0.0, inf, "()")
        self.decay_exponent = checked_real("Adafactor(decay_exponent=...)", decay_exponent, 0.0, 1.0, "(]")
        self.scale_by_parameter = checked_flag("Adafactor(scale_by_parameter=...)", scale_by_parameter)

    @property
    def kind(self) -> str:
        return "adafactor"

    def _update(self, names, grads, params, state, weight_decay):
        rows, means = state
        shapes = [self._model.parameters[name].shape for name in names]
        kernels.adafactor_update(grads, self._rates(params), 1.0 - self.steps ** -self.decay_exponent, self.clip_threshold,
                                 SQUARES_EPS, self.lr * weight_decay, np.array([columns(s) for s in shapes], np.int64),
                                 params=params, rows=rows, columns=means)

    def _rates(self, params: kernels.ArrayList) -> np.ndarray:
        """The rate of each array."""
        rates = np.full(len(params), self.lr)
        if self.scale_by_parameter:
            squares = np.empty(len(params))
            kernels.sum_of_squares(params, out=squares)
            for k, array in enumerate(params.arrays):
                rates[k] *= max(LEAST_SCALE, sqrt(squares[k] / max(1, array.size)))
        return rates
