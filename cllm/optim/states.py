"""The arrays that an optimizer keeps for each parameter: in memory, made at first use, or in a file."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np

from cllm.arrays import aligned_zeros
from cllm.executor.spilling import SpillFile
from cllm.models.model import Model
from cllm.program.shards import largest
from cllm.tensors import Part

MEMORY = "memory"
Arrays = dict[str, tuple[np.ndarray, ...]]


class States:
    """The states of an optimizer's parameters, all zero at first.

    Parameters
    ----------
    model : Model
    names : sequence of str
        Of the parameters.
    parts : int
        Arrays for each.

    Attributes
    ----------
    where : str
        "memory", or "disk:DIR".
    processes : int
        That share them: each has a part of every array, of one axis, in room as large as the largest part.
    file : SpillFile or None
        Where they are on disk: the places of (name, number of the part).
    """

    def __init__(self, model: Model, names: Sequence[str], parts: int):
        self._model, self._names, self.parts = model, names, parts
        self.where: str = MEMORY
        self.processes = 1
        self._part: Callable[[int], tuple[int, int]] | None = None
        self.file: SpillFile | None = None
        self._made: Arrays | None = None

    def __getstate__(self) -> dict:
        """Arrays in memory: a file is of one process."""
        return {**self.__dict__, "where": MEMORY, "file": None, "_made": dict(self.arrays())}

    def arrays(self) -> Mapping[str, tuple[np.ndarray, ...]]:
        """Live arrays by the parameter's name; those on disk live in the file."""
        if self.file is not None:
            self.file.begin()
            found = self.file.mapped({key: self._model.parameters[key[0]].shape for key in self._keys()}, self._model.dtype)
            return {name: tuple(found[name, part] for part in range(self.parts)) for name in self._names}
        if self._made is None:
            self._made = {name: tuple(self._empty(name) for _ in range(self.parts)) for name in self._names}
        return self._made

    def _empty(self, name: str) -> np.ndarray:
        parameter = self._model.parameters[name]
        if self._part is None:
            return aligned_zeros(parameter.shape, parameter.dtype)
        start, stop = self._part(parameter.size)
        return aligned_zeros((largest(parameter.size, self.processes),), parameter.dtype)[:stop - start]

    def elements(self, name: str, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Those of a run of a parameter's elements, which is this process's part where they are shared."""
        arrays = self.arrays()[name]
        return arrays if self._part is not None else tuple(array.reshape(-1)[start:stop] for array in arrays)

    def share(self, processes: int, part: Callable[[int], tuple[int, int]]) -> bool:
        """Keep this process's part of them from now on; whether they were whole.

        Parameters
        ----------
        processes : int
        part : callable
            From the size of an array to (start, stop).
        """
        if self._part is not None:
            return False
        whole, self._made = self._made, None
        self.processes, self._part = processes, part
        for name, arrays in (whole or {}).items():
            start, stop = part(arrays[0].size) if arrays else (0, 0)
            for mine, array in zip(self.arrays()[name], arrays, strict=True):
                mine[...] = array.reshape(-1)[start:stop]
        return True

    @property
    def shared(self) -> bool:
        """Whether this process has a part of them alone."""
        return self._part is not None

    def named(self, name: str) -> tuple[np.ndarray | Part, ...]:
        """Those of a parameter, as files hold them: whole, or parts of what is whole there."""
        arrays = self.arrays()[name]
        if self._part is None:
            return arrays
        parameter = self._model.parameters[name]
        return tuple(Part(array, parameter.shape, self._part(parameter.size)[0]) for array in arrays)

    def move(self, where: str) -> bool:
        """Put them there, as they are; whether they were elsewhere.

        Raises
        ------
        SpillError
            They are where they were.
        """
        if where == self.where:
            return False
        old = self.file
        if where == MEMORY:
            made = None
            if old is not None:
                made = {name: tuple(np.array(part) for part in parts) for name, parts in self.arrays().items()}
            self._made, self.file = made, None
        else:
            sizes = {(name, part): self._model.parameters[name].nbytes for name, part in self._keys()}
            new = SpillFile(where.partition(":")[2], sizes, "states on disk") if sum(sizes.values()) else None
            if new is not None and (old is not None or self._made is not None):
                try:
                    self._copy(self.arrays(), new)
                except BaseException:
                    new.close()
                    raise
            self._made, self.file = None, new
        self.where = where
        if old is not None:
            with suppress(BufferError):
                old.close()
        return True

    def _keys(self) -> list[tuple[str, int]]:
        return [(name, part) for name in self._names for part in range(self.parts)]

    @staticmethod
    def _copy(arrays: Mapping[str, tuple[np.ndarray, ...]], file: SpillFile) -> None:
        for name, parts in arrays.items():
            for number, part in enumerate(parts):
                if part.size:
                    file.write((name, number), part)
                    file.wait("write", (name, number))
        file.settle()
