"""A program that computes in bfloat16: whose products take such operands, and which of its values are such arrays.

Products are those of layers with a field `compute`. A value is bfloat16 when the layer that makes it and every layer that
reads it name it in `Layer.narrow`. So that belongs to the program, and no plan changes it.
"""

from dataclasses import replace
from functools import lru_cache

from cllm.errors import ConfigError
from cllm.program.dims import COMPUTES, NARROW
from cllm.program.program import Program


def checked_compute(where: str, compute, dtype: str = "float32") -> str:
    """`compute` when it is one of `COMPUTES` and the arrays can be computed so; otherwise `ConfigError`."""
    if not isinstance(compute, str) or compute not in COMPUTES:
        raise ConfigError(where, f"must be one of {', '.join(COMPUTES)}", repr(compute), "Choose one of these.")
    if compute != "float32" and dtype != "float32":
        raise ConfigError(where, "must be 'float32' where dtype is float64", repr(compute),
                          "Products in bfloat16 sum in float32; float64 is there to prove gradients.")
    return compute


@lru_cache(maxsize=64)
def with_compute(program: Program, compute: str) -> Program:
    """The program whose products are taken so; what is frozen, and its form, stay."""
    steps = tuple(replace(step, layer=step.layer.computing(compute)) for step in program.steps)
    wide = {value for step in steps for name, value in (*step.inputs.items(), *step.outputs.items())
            if compute == "float32" or name not in step.layer.narrow}
    values = {name: replace(value, dtype=NARROW) if name not in wide else
              replace(value, dtype=None) if value.dtype == NARROW else value for name, value in program.values.items()}
    if steps == program.steps and values == program.values:
        return program
    return Program(steps, values, program.parameters, program.tables, program.feeds, program.longest)
