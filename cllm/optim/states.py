"""The arrays that an optimizer keeps for each parameter: in memory, made at first use, or in a file."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import prod

import numpy as np

from cllm.arrays import aligned_zeros
from cllm.executor.spilling import SpillFile, StoredArray
from cllm.models.model import Model
from cllm.program.optimizer_states import Part
from cllm.tensors import Shard, pieces_of

MEMORY = "memory"
Arrays = dict[str, tuple[np.ndarray, ...]]


class States:
    """The states of an optimizer's parameters, all zero at first.

    Parameters
    ----------
    model : Model
    names : sequence of str
        Of the parameters.
    parts : sequence of Part
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

    def __init__(self, model: Model, names: Sequence[str], parts: Sequence[Part]):
        self._model, self._names, self.parts = model, names, tuple(parts)
        self.where: str = MEMORY
        self.processes = 1
        self._part: Callable[[int, int], tuple[int, int]] | None = None
        self.file: SpillFile | None = None
        self._made: Arrays | None = None

    def __getstate__(self) -> dict:
        """Arrays in memory: a file is of one process."""
        return {**self.__dict__, "where": MEMORY, "file": None, "_made": self._copied()}

    def arrays(self) -> Mapping[str, tuple[np.ndarray, ...]]:
        """Live arrays by the parameter's name; those on disk live in the file."""
        if self.file is not None:
            self.file.begin()
            return self._by_name(self.file.mapped({key: self._form(*key) for key in self._keys()}))
        if self._made is None:
            self._made = self._by_name({key: self._empty(*key) for key in self._keys()})
        return self._made

    def _empty(self, name: str, number: int) -> np.ndarray:
        shape, dtype = self._form(name, number)
        if self._part is None:
            return aligned_zeros(shape, dtype)
        mine, room = self._mine(name, number), self.parts[number].share(self._model.parameters[name].shape, self.processes)
        return aligned_zeros((room,), dtype)[:mine.stop - mine.start]

    def _mine(self, name: str, number: int) -> slice:
        """This process's part of an array."""
        part = self.parts[number]
        return slice(*self._part(part.size(self._model.parameters[name].shape), part.per))

    def stored(self) -> Mapping[str, tuple[np.ndarray | StoredArray | Shard, ...]]:
        """The same as files hold them: those on disk are read and written by calls, so that an error of the disk is a
        `SpillError`; and those that processes share are parts of what is whole there."""
        if self.file is not None:
            self.file.begin()
            return self._by_name({key: self.file.stored(key, *self._form(*key)) for key in self._keys()})
        if self._part is None:
            return self.arrays()
        parts = {}
        for name, number in self._keys():
            start = self._mine(name, number).start
            parts[name, number] = Shard(self.arrays()[name][number], self._form(name, number)[0], start, self.parts[number].per)
        return self._by_name(parts)

    def elements(self, name: str, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Those of a run of a parameter's elements, which is this process's part where they are shared."""
        arrays, shape = self.arrays()[name], self._model.parameters[name].shape
        if self._part is not None:
            return arrays
        return tuple(array.reshape(-1)[part.cut(shape, start, stop)] for part, array in zip(self.parts, arrays, strict=True))

    def share(self, processes: int, part: Callable[[int, int], tuple[int, int]]) -> bool:
        """Keep this process's part of them from now on; whether they were whole.

        Parameters
        ----------
        processes : int
        part : callable
            From the size of an array, and how many elements of a parameter each of its own stands for, to (start, stop).
        """
        if self._part is not None:
            return False
        whole, self._made = self._made, None
        self.processes, self._part = processes, part
        for name, arrays in (whole or {}).items():
            for number, array in enumerate(arrays):
                self.arrays()[name][number][...] = array.reshape(-1)[self._mine(name, number)]
        return True

    @property
    def shared(self) -> bool:
        """Whether this process has a part of them alone."""
        return self._part is not None

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
                made = self._copied()
            self._made, self.file = made, None
        else:
            sizes = {(name, number): prod(shape) * np.dtype(dtype).itemsize for name, number in self._keys()
                     for shape, dtype in (self._form(name, number),)}
            new = SpillFile(where.partition(":")[2], sizes, "states on disk") if sum(sizes.values()) else None
            if new is not None and (old is not None or self._made is not None):
                try:
                    self._copy(new)
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
        return [(name, number) for name in self._names for number in range(len(self.parts))]

    def _form(self, name: str, number: int) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of an array."""
        part = self.parts[number]
        return part.shape(self._model.parameters[name].shape), part.dtype or self._model.dtype

    def _by_name(self, found: Mapping) -> dict:
        return {name: tuple(found[name, number] for number in range(len(self.parts))) for name in self._names}

    def _copied(self) -> Arrays:
        """Arrays in memory that hold what is there."""
        return {name: tuple(np.array(part) for part in parts) for name, parts in self.stored().items()}

    def _copy(self, file: SpillFile) -> None:
        """What there is into another file."""
        for name, parts in self.stored().items():
            for number, part in enumerate(parts):
                at = 0
                for piece in pieces_of(part) if part.size else ():
                    file.write((name, number), piece, at)
                    file.wait("write", (name, number), at)
                    at += piece.nbytes
        file.settle()
