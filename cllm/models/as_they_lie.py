"""Frozen parameters as files hold them: mapped read-only, never copied."""

from collections.abc import Mapping

import numpy as np

from cllm.program.program import Program
from cllm.program.stored import can_be_stored
from cllm.weights.dtypes import NAMES
from cllm.weights.parts import Part
from cllm.weights.stored import Stored, stored


def as_they_lie(parts: Mapping[str, Part], tensors: Mapping, program: Program, dtype: str,
                orders: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray | Stored]:
    """The frozen parameters that need no copy.

    An array where a tensor is the parameter as it stands; in float32 a `Stored` where a matrix is turned, narrower, in blocks,
    or several tensors beside each other. Others are left out: vectors in a narrow dtype, tensors of a wrong shape.

    Parameters
    ----------
    parts : dict of Part by name of a tensor
    tensors : dict by name
        With `code`, `shape`, `raw()` and `rows(order)`, such as `cllm.weights.header.Tensor`.
    program : Program
        Which knows what is frozen.
    dtype : {"float32", "float64"}
        Of the model.
    orders : dict of arrays by name, or None
        Which row of a tensor is which row that `parts` mean, where they stand in another order.
    """
    orders, found = orders or {}, {}
    of: dict[str, dict[str, Part]] = {}
    for name, part in parts.items():
        if part.parameter in program.frozen and tensors[name].shape == part.shape(program.parameters[part.parameter].shape):
            of.setdefault(part.parameter, {})[name] = part
    matrices = can_be_stored(program) if dtype == "float32" else ()
    for parameter, mine in of.items():
        name, part = next(iter(mine.items()))
        if part.columns is None and not part.transposed and tensors[name].code == NAMES[dtype] and name not in orders:
            found[parameter] = np.asarray(tensors[name].raw())
        elif parameter in matrices:
            if part.columns is None:  # others repeat it
                mine = {name: part}
            shape = program.parameters[parameter].shape
            made = stored([(p, tensors[n].rows(orders.get(n))) for n, p in mine.items()], shape[1])
            if made is not None and made.shape == shape:
                found[parameter] = made
    return found
