"""`Model`: an architecture with its parameters and gradients."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from cllm import _kernels as kernels
from cllm.checks import LARGEST_SEED, checked_size
from cllm.errors import ConfigError
from cllm.models.architecture import Architecture, checked_architecture, metadata_of
from cllm.models.parameters import constant_tables, forms_in, initial_parameters, zero_gradients
from cllm.models.saving import Saved, Source, save_directory
from cllm.models.torn import Torn
from cllm.program.computing import checked_compute, with_compute
from cllm.program.program import Program
from cllm.program.stored import with_stored
from cllm.program.trained import Patterns, checked_patterns, with_trained
from cllm.program.workload import ITEMSIZE
from cllm.tensors import save_model
from cllm.threads.counts import default_threads
from cllm.threads.turns import Turn
from cllm.weights.stored import Stored


class Model:
    """Parameters, and gradients once something asks for them.

    Several Python threads may use one model. What adds to its gradients, changes them or moves its parameters has its turn
    after another; what only reads it (a loss, logits, a text) waits for nobody: beside an optimizer's step it may see
    some parameters before and some after.

    Parameters
    ----------
    architecture : Architecture
    seed : int or None
        Of the initial weights; None leaves them zero, for weights that are about to be read.
    dtype : {"float32", "float64"}
        float32 trains; float64 is there to prove gradients.
    trainable : str, several of them, or None
        As the attribute of that name.
    arrays : arrays by name, or None
        Parameters that are there already, of the model's shapes and dtype: it has these very arrays. Read-only ones must be
        frozen, as must those that are stored as they lie in files (`cllm.weights.stored.Stored`).
    compute : {"float32", "bfloat16", "bfloat16:units"}
        As the attribute of that name.

    Raises
    ------
    ConfigError
        When an argument is outside what it may be.
    ShapeError
        When one of `arrays` is another than the model's.
    DeclarationError
        When the architecture's layers cannot be wired as it says.
    """

    def __init__(self, architecture: Architecture, seed: int | None = 0, dtype: str = "float32", trainable: Patterns = None,
                 arrays: Mapping[str, np.ndarray] | None = None, compute: str = "float32"):
        name = type(self).__name__
        self._architecture = checked_architecture(f"{name}(architecture)", architecture)
        if not isinstance(dtype, str) or dtype not in ITEMSIZE:
            raise ConfigError(f"{name}(dtype=...)", f"must be one of {', '.join(ITEMSIZE)}", repr(dtype),
                              "Choose one of these.")
        self.dtype = dtype
        self._trainable = checked_patterns(f"{name}(trainable=...)", trainable)
        self._compute = checked_compute(f"{name}(compute=...)", compute, dtype)
        self._stored = forms_in(arrays or {})
        self._program = self._with(self._trainable, f"{name}(trainable=...)")
        if seed is not None:
            seed = checked_size(f"{name}(seed=...)", seed, 0, LARGEST_SEED)
        self._parameters = initial_parameters(self._program, seed, dtype, arrays or {})
        self._refuse_read_only(self._program)
        self._made: dict[str, Mapping[str, np.ndarray]] = {}  # at first use; of two threads', those that were there first
        self.revision = 0  # rises when what is trained changes: executors and optimizers from before are not for it
        self.planned_optimizer: str | None = None
        self.source: Source | None = None  # where weights were loaded from
        self.threads: int | None = None  # of the latest step, for what follows it
        self.turn = Turn("the model's gradients and parameters")
        self.torn = Torn("the model")

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._architecture.to_dict().items())
        count = sum(p.size for p in self._parameters.values())
        return f"{type(self).__name__}({settings}: {count:,} parameters, {self.dtype})"

    def __getstate__(self) -> dict:
        """Architecture and arrays alone, so that a model can be copied and sent to another process; the rest is made anew."""
        made = self._made.get("gradients")
        return {"architecture": self._architecture, "dtype": self.dtype, "parameters": dict(self._parameters),
                "gradients": None if made is None else dict(made), "planned_optimizer": self.planned_optimizer,
                "source": self.source, "trainable": self._trainable, "compute": self._compute, "torn": self.torn.reason}

    def __setstate__(self, state: dict) -> None:
        kept = {name: array for name, array in state["parameters"].items() if isinstance(array, Stored)}
        self.__init__(state["architecture"], seed=None, dtype=state["dtype"], trainable=state.get("trainable"), arrays=kept,
                      compute=state.get("compute", "float32"))
        self.planned_optimizer, self.source = state["planned_optimizer"], state["source"]
        self.torn.reason = state["torn"]
        for name in state["parameters"].keys() - kept:
            self._parameters[name][...] = state["parameters"][name]
        for name, values in (state["gradients"] or {}).items():
            self.gradients[name][...] = values

    @property
    def architecture(self) -> Architecture:
        """The settings it was made with."""
        return self._architecture

    @property
    def program(self) -> Program:
        """The model as a straight line of wired layers, which know what is frozen."""
        return self._program

    @property
    def compute(self) -> str:
        """What operands of products are: "float32", or "bfloat16", whose sums are float32, "bfloat16:units" in units of 32.

        In bfloat16 the values that layers name in `Layer.narrow` are such arrays, too; parameters, the residual stream,
        statistics, loss and gradients stay float32. It may be set to another; executors that are there keep theirs.

        Raises
        ------
        ConfigError
            When it is none of these, or in bfloat16 for a model of float64.
        """
        return self._compute

    @compute.setter
    def compute(self, compute: str) -> None:
        compute = checked_compute("model.compute", compute, self.dtype)
        with self.turn():
            self._compute, self._program = compute, with_compute(self._program, compute)

    @property
    def trainable(self) -> tuple[str, ...] | None:
        """Patterns of the names of parameters that are trained, as `fnmatch` reads them; None trains all.

        What none matches is frozen: it has no gradient and no state of an optimizer, and backward leaves out what it alone
        needs. Set it to other patterns before executors and optimizers are made: gradients are made anew then, and those of
        before are refused.

        Raises
        ------
        ConfigError
            When a pattern matches no parameter; nothing is changed.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, patterns: Patterns) -> None:
        patterns = checked_patterns("model.trainable", patterns)
        program = self._with(patterns, "model.trainable")
        self._refuse_read_only(program)
        with self.turn():
            if program.trained != self._program.trained:
                self._made.pop("gradients", None)
                self.__dict__.pop("gradient_list", None)
                self.revision += 1
                self._program = program
            self._trainable = patterns

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """Live arrays by name; assign into them (``parameters[name][...] = values``). Those that are stored as they lie in
        files are read-only `Stored`, which ``numpy.asarray`` expands.

        Raises
        ------
        TornError
            When an update was broken off: they are of no one step.
        """
        self.torn.refuse()
        return self._parameters

    def _with(self, patterns: Patterns, where: str) -> Program:
        """The architecture's program with these patterns trained, computed and stored as the model is."""
        return with_stored(with_compute(with_trained(self._architecture.program, patterns, where), self._compute), self._stored,
                           where)

    def _refuse_read_only(self, program: Program) -> None:
        """Refuse to train parameters that are mapped from a file."""
        for name in program.trained:
            if not self._parameters[name].flags.writeable:
                raise ConfigError("model.trainable", "must match no parameter that is mapped from a file", name,
                                  "Train others, such as adapters, or load the model without mapped=True.")

    @property
    def gradients(self) -> Mapping[str, np.ndarray]:
        """Arrays of the names and shapes of the parameters that are trained, made of zeros at first use;
        `Executor.loss_and_grad` adds into them."""
        if "gradients" not in self._made:
            trained = {name: self._parameters[name] for name in self._program.trained}
            self._made.setdefault("gradients", zero_gradients(trained))
        return self._made["gradients"]

    @property
    def has_gradients(self) -> bool:
        """Whether the arrays of gradients have been made."""
        return "gradients" in self._made

    @cached_property
    def gradient_list(self) -> kernels.ArrayList:
        """The gradients in the order of their names, bound for kernels that go over all of them in one call."""
        return kernels.ArrayList(self.gradients.values())

    @property
    def tables(self) -> Mapping[str, np.ndarray]:
        """Arrays of constants by name, read-only, made at first use: fixed positions, lattice coordinates."""
        if "tables" not in self._made:
            self._made.setdefault("tables", constant_tables(self._program, self.dtype))
        return self._made["tables"]

    @property
    def held_bytes(self) -> int:
        """Bytes of the arrays that have been made so far."""
        return sum(array.nbytes for arrays in (self._parameters, *self._made.values()) for array in arrays.values())

    def attach(self, optimizer: str) -> None:
        """Remember for which optimizer's state the latest executor planned memory."""
        self.planned_optimizer = optimizer

    @contextmanager
    def changed(self) -> Iterator[None]:
        """What changes gradients or parameters between steps runs inside of this: in its turn, on the threads of the latest
        step."""
        self.torn.refuse()
        with self.turn(), kernels.Threads(self.threads or default_threads()):
            yield

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        self.torn.refuse()
        if self.has_gradients:
            with self.changed():
                kernels.fill_zero(x=self.gradient_list)

    def copy(self, dtype: str | None = None) -> "Model":
        """A model of the same architecture and weights, of another dtype if one is named; gradients are not copied.

        In float64 it computes in float64. What is stored as it lies in files, which nobody can write, is shared; in another
        dtype it is expanded.
        """
        dtype = dtype or self.dtype
        kept = {name: self.parameters[name] for name in self._stored} if dtype == self.dtype else {}
        made = type(self)(self._architecture, seed=None, dtype=dtype, trainable=self._trainable, arrays=kept,
                          compute=self._compute if dtype == self.dtype else "float32")
        made.source = self.source
        for name in self.parameters.keys() - kept:
            made.parameters[name][...] = self.parameters[name]
        return made

    def shared(self) -> "Model":
        """A model with these very arrays, for who reads them and plans nothing for this one's optimizer."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def save_pretrained(self, directory: str | Path, dtype: str | None = None) -> Saved:
        """Write config.json and safetensors that the ecosystem reads, with what else stood beside them where it was loaded.

        Parameters
        ----------
        directory : str or Path
            Made if missing.
        dtype : {"float32", "float16", "bfloat16", "float64"} or None
            None takes the source's, or float32.

        Returns
        -------
        Saved
            How many elements were written, were changed by training, and were changed by less than the dtype can tell.

        Raises
        ------
        ConfigError
            When the family has no such files.
        SnapshotError
            When it cannot be written.
        """
        return save_directory(self.parameters, self._architecture, self.source, Path(directory), dtype)

    def save(self, path: str | Path) -> None:
        """Write architecture, parameters and a checksum over all of it as one safetensors file, whole or not at all;
        `cllm.load` reads it.

        Raises
        ------
        SnapshotError
            When the file cannot be written.
        """
        save_model(path, self.parameters, metadata_of(self._architecture, self.dtype, self._compute))
