"""Parameters of a program as live arrays, made and initialised, their gradients, and the tables of constants."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from cllm.arrays import aligned_empty, aligned_zeros
from cllm.errors import ShapeError
from cllm.program.parts import Parameter, StoredForm
from cllm.program.program import Program
from cllm.weights.stored import Stored

PIECE = 1 << 16  # values that are drawn at a time
DRAWN: dict[str, Callable[[np.random.Generator, Parameter, int], np.ndarray]] = {
    "normal": lambda generator, parameter, count: generator.normal(0.0, parameter.std, count),
    # as PyTorch's kaiming_uniform with a = sqrt 5 (He et al. 2015), by which PEFT begins
    "fan_in": lambda generator, parameter, count: generator.uniform(-1, 1, count) / np.sqrt(parameter.shape[-1])}


def initial_parameters(program: Program, seed: int | None, dtype: str,
                       given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Fresh parameters; each draws from its own generator, so none depends on which others a model has. Those that are `given`
    by name are taken as they are.

    Values are drawn in float64 and rounded once: float32 and float64 models of one seed start alike. Without a seed they are
    zero, for weights that are about to be read.
    """
    arrays = {}
    for parameter in program.parameters.values():
        if parameter.name in given:
            arrays[parameter.name] = _checked(parameter, given[parameter.name], dtype)
            continue
        array = aligned_empty(parameter.shape, dtype)
        _begin(array, parameter, seed)
        arrays[parameter.name] = array
    return MappingProxyType(arrays)


def _checked(parameter: Parameter, array: np.ndarray, dtype: str) -> np.ndarray:
    as_array = isinstance(array, Stored) or array.flags.c_contiguous and array.dtype.isnative
    if array.shape != parameter.shape or array.dtype != dtype or not as_array:
        raise ShapeError(f"Model(arrays=...), {parameter.name}", f"must be {dtype} of shape {parameter.shape}, C-contiguous",
                         f"{array.dtype} of shape {array.shape}" + (f", strides {array.strides}" if not as_array else ""),
                         "Convert it with ascontiguousarray.")
    return array


def forms_in(arrays: Mapping[str, np.ndarray]) -> dict[str, StoredForm]:
    """How those are stored that are no arrays."""
    return {name: array.form for name, array in arrays.items() if isinstance(array, Stored)}


def zero_gradients(parameters: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Arrays of the same names, shapes and dtype, all zero."""
    return MappingProxyType({name: aligned_zeros(p.shape, p.dtype) for name, p in parameters.items()})


def constant_tables(program: Program, dtype: str) -> Mapping[str, np.ndarray]:
    """The tables of constants, read-only: made in float64 and rounded once."""
    arrays = {}
    for constant in program.tables.values():
        array = aligned_empty(constant.shape, constant.table.dtype or dtype)
        array[...] = constant.values()
        array.flags.writeable = False
        arrays[constant.name] = array
    return MappingProxyType(arrays)


def _begin(array: np.ndarray, parameter: Parameter, seed: int | None) -> None:
    """Write the first values, drawn piece by piece: beside the array there is room for one piece alone."""
    if seed is None or parameter.init not in DRAWN:
        array[...] = 0.0 if seed is None else {"ones": 1.0, "zeros": 0.0}.get(parameter.init, parameter.init)
        return
    generator, flat = np.random.default_rng([seed, *parameter.name.encode()]), array.reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = flat[start:start + PIECE]
        piece[...] = DRAWN[parameter.init](generator, parameter, piece.size)
