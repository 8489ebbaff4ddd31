"""`GPT`: a configuration with its parameters and gradients."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cllm import _kernels as kernels
from cllm.config import LARGEST_SEED, ModelConfig, checked_size
from cllm.errors import ConfigError, SnapshotError
from cllm.models.parameters import constant_tables, initial_parameters, zero_gradients
from cllm.models.wiring import wire
from cllm.program.program import Program
from cllm.program.workload import ITEMSIZE


class GPT:
    """A transformer language model: parameters, and gradients once something asks for them.

    Parameters
    ----------
    config : ModelConfig
    seed : int
        Of the initial weights.
    dtype : {"float32", "float64"}
        float32 trains; float64 is there to prove gradients.

    Raises
    ------
    ConfigError
        When an argument is outside what it may be.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, dtype: str = "float32"):
        if not isinstance(config, ModelConfig):
            raise ConfigError("GPT(config)", "must be a ModelConfig", type(config).__name__,
                              "Make one with cllm.ModelConfig(...) or ModelConfig.preset(name).")
        if not isinstance(dtype, str) or dtype not in ITEMSIZE:
            raise ConfigError("GPT(dtype=...)", f"must be one of {', '.join(ITEMSIZE)}", repr(dtype), "Choose one of these.")
        self.config = config
        self.dtype = dtype
        self._parameters = initial_parameters(self.program, checked_size("GPT(seed=...)", seed, 0, LARGEST_SEED), dtype)
        self._gradients: Mapping[str, np.ndarray] | None = None
        self._tables: Mapping[str, np.ndarray] | None = None
        self.planned_optimizer: str | None = None

    @property
    def program(self) -> Program:
        """The model as a straight line of wired layers."""
        return wire(self.config)

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """Live arrays by name; assign into them (``parameters[name][...] = values``)."""
        return self._parameters

    @property
    def gradients(self) -> Mapping[str, np.ndarray]:
        """Arrays of the same names and shapes, made of zeros at first use; `Executor.loss_and_grad` adds into them."""
        if self._gradients is None:
            self._gradients = zero_gradients(self._parameters)
        return self._gradients

    @cached_property
    def gradient_list(self) -> kernels.ArrayList:
        """The gradients in the order of their names, bound for kernels that go over all of them in one call."""
        return kernels.ArrayList(self.gradients.values())

    @property
    def tables(self) -> Mapping[str, np.ndarray]:
        """Arrays of constants by name, read-only, made at first use: fixed positions, lattice coordinates."""
        if self._tables is None:
            self._tables = constant_tables(self.program, self.dtype)
        return self._tables

    def attach(self, optimizer: str) -> None:
        """Remember for which optimizer's state the latest executor planned memory."""
        self.planned_optimizer = optimizer

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        if self._gradients is not None:
            kernels.fill_zero(x=self.gradient_list)

    def save(self, path: str | Path) -> None:
        """Write configuration and parameters as one safetensors file.

        Raises
        ------
        SnapshotError
            When the file cannot be written.
        """
        try:
            save_file(dict(self._parameters), path, {"config": json.dumps(self.config.to_dict()), "dtype": self.dtype})
        except OSError as error:
            raise SnapshotError(f"save({str(path)!r})", "must be a place that can be written", str(error),
                                "Choose another path, or make room.") from error


def load(path: str | Path) -> GPT:
    """The model that `GPT.save` wrote.

    Raises
    ------
    SnapshotError
        When the file is missing, damaged, or not one of ours.
    """
    where, do = f"load({str(path)!r})", "Save the model again, or choose another file."
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        model = GPT(ModelConfig(**json.loads(metadata["config"])), dtype=metadata["dtype"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise SnapshotError(where, "must be a model that GPT.save wrote", f"{type(error).__name__}: {error}", do) from error
    for name, parameter in model.parameters.items():
        if name not in arrays or arrays[name].shape != parameter.shape or arrays[name].dtype != parameter.dtype:
            raise SnapshotError(where, f"must hold {name} of shape {parameter.shape}",
                                str(arrays[name].shape) if name in arrays else "nothing", do)
        parameter[...] = arrays[name]
    return model
