"""Products in bfloat16, made in each way that they can be, for the tests of both their definitions."""
import numpy as np
import pytest

from cllm import _kernels as kernels


def made(*ways):
    """A fixture: products are made in each of the ways, of `take_bfloat16`, in turn."""
    @pytest.fixture(params=ways)
    def way(request):
        kernels.take_bfloat16(request.param)
        yield request.param
        kernels.take_bfloat16("decide")
    return way


def room(rows, n_in, n_out):
    """Scratch of a layer's products, of NaN."""
    return np.full(kernels.linear_workspace(rows, n_in, n_out, kernels.get_threads(), 4, True), np.nan, np.float32)
