"""`GPT`: a configuration with its parameters and gradients."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from cllm import _kernels as kernels
from cllm.config import LARGEST_SEED, ModelConfig, checked_size
from cllm.errors import ConfigError
from cllm.models.parameters import aligned_copies, constant_tables, initial_parameters, zero_gradients
from cllm.models.wiring import wire
from cllm.program.program import Program
from cllm.program.workload import ITEMSIZE
from cllm.tensors import foreign, load_model, read_metadata, save_model


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

    def __repr__(self) -> str:
        c, count = self.config, sum(p.size for p in self._parameters.values())
        return (f"GPT({c.n_layers} layers, d_model {c.d_model}, n_heads {c.n_heads}, d_ff {c.d_ff}, vocab_size {c.vocab_size}, "
                f"max_seq_len {c.max_seq_len}: {count:,} parameters, {self.dtype})")

    def __getstate__(self) -> dict:
        """Configuration and arrays alone, so that a model can be copied and sent to another process; the rest is made anew."""
        return {"config": self.config, "dtype": self.dtype, "parameters": dict(self._parameters),
                "gradients": None if self._gradients is None else dict(self._gradients),
                "planned_optimizer": self.planned_optimizer}

    def __setstate__(self, state: dict) -> None:
        self.config, self.dtype, self.planned_optimizer = state["config"], state["dtype"], state["planned_optimizer"]
        self._parameters = aligned_copies(state["parameters"])
        self._gradients = None if state["gradients"] is None else aligned_copies(state["gradients"])
        self._tables = None

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

    @property
    def held_bytes(self) -> int:
        """Bytes of the arrays that have been made so far."""
        made = (self._parameters, self._gradients or {}, self._tables or {})
        return sum(array.nbytes for arrays in made for array in arrays.values())

    def attach(self, optimizer: str) -> None:
        """Remember for which optimizer's state the latest executor planned memory."""
        self.planned_optimizer = optimizer

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        if self._gradients is not None:
            kernels.fill_zero(x=self.gradient_list)

    def save(self, path: str | Path) -> None:
        """Write configuration, parameters and a checksum over all of it as one safetensors file, whole or not at all.

        Raises
        ------
        SnapshotError
            When the file cannot be written.
        """
        save_model(path, self._parameters, {"config": json.dumps(self.config.to_dict()), "dtype": self.dtype})


def load(path: str | Path) -> GPT:
    """The model that `GPT.save` wrote.

    Raises
    ------
    SnapshotError
        When the file is missing, damaged, or not one of ours: every byte is checked against its checksum.
    """
    metadata = read_metadata(path)
    try:
        model = GPT(ModelConfig(**json.loads(metadata["config"])), dtype=metadata["dtype"])
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise foreign(path, error) from error
    load_model(path, model.parameters)
    return model
