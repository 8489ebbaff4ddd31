"""What a whole step does to parameters: gradients are zeroed, their norms found, scaled, used; states come and go."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import isfinite, prod, sqrt

import numpy as np

from cllm import _kernels as kernels
from cllm.checks import checked_real, checked_word
from cllm.errors import CllmError, ConfigError, NonFiniteError, OptimizerError
from cllm.executor.groups import Groups
from cllm.executor.spilling import SpillFile
from cllm.models.model import Model
from cllm.program.kinds import Kind
from cllm.program.optimizer_states import state_bytes, state_parts
from cllm.program.shards import CHUNK
from cllm.program.workload import CLIP_BY, Workload
from cllm.schedule.operations import Op

Call = Callable[[], None]
SKIP = "Call model.zero_grad() and skip the batch, or lower the learning rate."
NAMED = 3  # parameters that an error names of those that had moved


class Updating:
    """The calls of operations on parameters, and what is known of the step under way.

    Parameters
    ----------
    model : Model
    workload : Workload
    check_loss : callable
        Raises where the loss is not finite.
    groups : Groups

    Attributes
    ----------
    measuring : bool
        Whether norms alone are found in this pass, and nothing is moved.
    group : int
        Which of this process's groups is under way.
    where : str
        What errors name.
    """

    def __init__(self, model: Model, workload: Workload, check_loss: Call, groups: Groups):
        self._model, self._workload, self._check_loss, self._groups = model, workload, check_loss, groups
        self._numbers = {name: number for number, name in enumerate(model.program.trained)}
        self._squares = np.zeros(len(self._numbers))
        self._moved: list[str] = []
        self._optimizer = None
        self._by_name: Mapping = {}
        self._clip_norm: float | None = None
        self._clip_by = "all"
        self._whole_norm = 0.0
        self.measuring = False
        self.group = 0
        self.where = ""

    @property
    def norm(self) -> float:
        """Of all gradients together, before they were clipped."""
        return sqrt(sum(self._squares.tolist()))

    @property
    def needs_norm_first(self) -> bool:
        """Whether the norm of all gradients decides what happens to each."""
        return self._clip_norm is not None and self._clip_by == "all"

    def begin(self, optimizer, clip_norm: float | None, clip_by: str, states: str) -> None:
        """A step with that optimizer, its states in their place; all that can be refused is refused here.

        Raises
        ------
        ConfigError, OptimizerError, SpillError, TornError
        """
        self._clip_by = checked_word("train_step(clip_by=...)", clip_by, CLIP_BY)
        self._clip_norm = None if clip_norm is None else checked_real("train_step(clip_norm=...)", clip_norm)
        if not all(hasattr(optimizer, name) for name in ("by_name", "keep_states", "check_step")):
            raise ConfigError("train_step(optimizer)", "must be an optimizer", type(optimizer).__name__,
                              "Pass for example cllm.AdamW(model).")
        if optimizer.model is not self._model:
            raise ConfigError("train_step(optimizer)", "must be of the executor's model", "one of another",
                              "Make the optimizer with this model.")
        if optimizer is not self._optimizer:
            by_name = optimizer.by_name()
            for name, one in by_name.items():
                self._refuse_unplanned(name, one, optimizer.kind)
            self._optimizer, self._by_name = optimizer, by_name
        optimizer.check_step(planned=True)
        optimizer.keep_states(states)
        if self._groups.shared:
            optimizer.share_states(self._workload.processes, self._groups.part)
        for file in self.files():
            file.begin()
        self._moved.clear()
        self.measuring = False

    def _refuse_unplanned(self, name: str, one, kind: str) -> None:
        """Refuse an optimizer that keeps more for a parameter than was planned, or goes over it in other pieces."""
        planned, shape = state_parts(self._workload.optimizer, name), self._model.program.parameters[name].shape
        mine, theirs = (state_bytes(parts, shape, self._workload.dtype) for parts in (one.parts, planned))
        if mine > theirs:
            raise OptimizerError("train_step(optimizer)", f"must keep at most {theirs:,} bytes for {name}, as planned",
                                 f"{mine:,}", f"Make the executor with optimizer={kind!r}.")
        if one.parts != planned and any(part.per != 1 for part in one.parts):
            raise OptimizerError("train_step(optimizer)", f"must be what was planned for {name}", one.kind,
                                 f"Make the executor with optimizer={kind!r}.")

    def mark(self) -> dict:
        """What is the same in all processes that share a step."""
        one = self._optimizer
        return {} if one is None else {"optimizer": repr(one), "clip": (self._clip_norm, self._clip_by)}

    def files(self) -> list[SpillFile]:
        """The files of states on disk."""
        found = {id(one): one.states.file for one in self._by_name.values()}
        return [file for file in found.values() if file is not None]

    def measured(self) -> None:
        """The pass for the norm is over."""
        self.measuring, self._whole_norm = False, self.norm

    def finish(self) -> None:
        """All has moved."""
        self._moved.clear()

    def broken_off(self, error: BaseException) -> BaseException:
        """Mark what has moved in part; the error to raise."""
        if not self._moved:
            return error
        count, moved = len(self._numbers), list(dict.fromkeys(self._moved))
        named = ", ".join(moved[:NAMED]) + (f" and {len(moved) - NAMED} more" if len(moved) > NAMED else "")
        after = f"after {len(moved)} of {count} parameters had moved, {named}"
        self._model.torn.reason = self._optimizer.torn.reason = f"{self.where}, broken off {after}"
        self._moved.clear()
        if isinstance(error, CllmError):
            return type(error)(error.where, error.must, f"{error.got}, {after}",
                               "The model is torn: load the last snapshot, and lower the rate or make room.")
        return error

    # calls

    def call(self, op: Op, arrays: Mapping[str, np.ndarray]) -> Call:
        """What an operation on parameters does, ready to be called."""
        gradient = arrays.get("gradient")
        if op.kind == Kind.CHECK_LOSS:
            return self._check_loss
        if op.kind == Kind.ZERO_GRADIENT:
            return partial(kernels.fill_zero, x=kernels.ArrayList([gradient]))
        if op.kind == Kind.REDUCE:
            return self._reduction(op.params[0], arrays)
        if op.kind == Kind.GATHER:
            return self._gather
        if op.kind == Kind.CLIP and not op.params:
            return partial(self._clip_parts, self._pieces(arrays)) if arrays else self._clip_all
        if op.kind == Kind.CLIP:
            return partial(self._clip, op.params[0], kernels.ArrayList([gradient]))
        if op.kind == Kind.UPDATE and not op.params:
            return self._update_all
        name = op.params[0]
        start, stop = op.piece or self._groups.part(prod(self._model.program.parameters[name].shape))
        window = arrays.get("states")
        if op.kind == Kind.UPDATE:
            gradient = (self._model.gradients[name] if gradient is None else gradient).reshape(-1)
            gradient = gradient[:stop - start] if self._groups.shared else gradient[start:stop]
            parameter = self._model.parameters[name].reshape(-1)[start:stop]
            return partial(self._update, name, gradient, parameter, window, start, stop)
        way = "read" if op.kind in (Kind.LOAD_START, Kind.LOAD_WAIT) else "write"
        waits = op.kind in (Kind.LOAD_WAIT, Kind.STORE_WAIT)
        return partial(self._move, way, waits, name, window, start, stop)

    def _reduction(self, name: str, arrays: Mapping[str, np.ndarray]) -> Call:
        """The call that adds a group's gradient to those of the groups before."""
        flat = arrays["gradient"].reshape(-1)
        partials = [arrays[role] for role in arrays if role.startswith("partial")]
        start, stop = self._groups.part(flat.size)
        target = arrays["sum"][:stop - start] if "sum" in arrays else self._model.gradients[name].reshape(-1)[start:stop]
        message = arrays.get("message")
        claimed = [array for role in ("sum", "message") if (array := arrays.get(role)) is not None]

        def reduce() -> None:
            for level, partial_sum in enumerate(partials):
                if not self.group >> level & 1:
                    np.copyto(partial_sum, flat)
                    return
                kernels.add_in_place(partial_sum, y=flat)
            for array in claimed:  # room of its own to the end, see `binding._claimed`
                array[-1:] = 0
            if message is not None:
                self._groups.reduce(flat, message)
            if "sum" in arrays:
                target.fill(0)
            kernels.add_in_place(flat[start:stop], y=target)
            if message is not None and "sum" not in arrays:
                self._groups.spread(self._model.gradients[name])

        return reduce

    def _pieces(self, arrays: Mapping[str, np.ndarray]) -> dict[str, kernels.ArrayList]:
        """Chunks of this process's part of each gradient."""
        found = {}
        for name, array in arrays.items():
            start, stop = self._groups.part(prod(self._model.program.parameters[name].shape))
            mine = array[:stop - start]
            found[name] = kernels.ArrayList([mine[at:at + CHUNK] for at in range(0, mine.size, CHUNK)])
        return found

    def _clip_parts(self, pieces: Mapping[str, kernels.ArrayList]) -> None:
        """All gradients, of which each process has a part: chunks' sums of squares are added in the order of the whole array,
        as kernels add them."""
        self._check_loss()
        mine = {name: np.empty(len(chunks)) for name, chunks in pieces.items()}
        for name, chunks in pieces.items():
            kernels.sum_of_squares(chunks, out=mine[name])
        found = [dict(zip(mine, of_rank, strict=True)) for of_rank in self._groups.tell(list(mine.values()))]
        in_order = self._groups.in_order(found)
        for name, number in self._numbers.items():
            total = 0.0
            for square in (square for of_rank in in_order for square in of_rank[name].tolist()):
                total += square
            self._squares[number] = total
        squares = self._squares.tolist()
        if not isfinite(sum(squares)):
            bad = {name for name, chunks in pieces.items() if kernels.nonfinite_arrays(chunks)}
            everywhere = set().union(*self._groups.tell(bad))
            self._refuse_named([name for name in self._numbers if name in everywhere])
        for chunks, square in zip(pieces.values(), squares, strict=True) if self._clip_norm is not None else ():
            norm = self.norm if self._clip_by == "all" else sqrt(square)
            kernels.scale_in_place(np.full(len(chunks), self._factor(norm)), x=chunks)

    def _gather(self) -> None:
        """What other processes updated."""
        for name in self._numbers:
            if name in self._by_name:
                self._groups.spread(self._model.parameters[name])

    def _clip(self, name: str, gradient: kernels.ArrayList) -> None:
        """One parameter's gradient."""
        number = self._numbers[name]
        if self.measuring or not self.needs_norm_first:
            kernels.sum_of_squares(gradient, out=self._squares[number:number + 1])
            if not isfinite(self._squares[number]):
                self._refuse([name], gradient)
        if not self.measuring and self._clip_norm is not None:
            norm = self._whole_norm if self._clip_by == "all" else sqrt(self._squares[number])
            kernels.scale_in_place(np.array([self._factor(norm)]), x=gradient)

    def _clip_all(self) -> None:
        """All gradients of the model."""
        self._check_loss()
        gradients = self._model.gradient_list
        kernels.sum_of_squares(gradients, out=self._squares)
        squares = self._squares.tolist()
        if not isfinite(sum(squares)):
            self._refuse(list(self._numbers), gradients)
        if self._clip_norm is not None:
            norms = [self.norm] * len(squares) if self._clip_by == "all" else [sqrt(square) for square in squares]
            kernels.scale_in_place(np.array([self._factor(norm) for norm in norms]), x=gradients)

    def _factor(self, norm: float) -> float:
        return self._clip_norm / norm if norm > self._clip_norm else 1.0

    def _refuse(self, names: list[str], gradients: kernels.ArrayList) -> None:
        """Refuse gradients that are not finite, or whose norm is not and is needed."""
        self._refuse_named([names[number] for number in kernels.nonfinite_arrays(gradients)])

    def _refuse_named(self, bad: list[str]) -> None:
        """The same of those, in the model's order, in which there is NaN or infinity."""
        if bad:
            raise NonFiniteError(f"{self.where}, gradient of {bad[-1]}", "must be finite",
                                 "NaN or infinity, first in backward there", SKIP)
        if self._clip_norm is not None:
            raise NonFiniteError(self.where, "the norm of the gradients must be finite", "overflow of their squares", SKIP)

    def _update_all(self) -> None:
        self._optimizer.begin_step()
        self._optimizer.update_all()

    def _update(self, name: str, gradient: np.ndarray, parameter: np.ndarray, window: np.ndarray | None, start: int,
                stop: int) -> None:
        one = self._by_name.get(name)
        if self.measuring or one is None:
            return
        if window is None:
            states = one.states.elements(name, start, stop) if one.parts else ()
        else:
            states = tuple(view for view, _ in self._views(window, one, name, start, stop))
        if not self._moved:
            self._moved.append(name)
            self._optimizer.begin_step()
        self._moved.append(name)
        one.update(name, gradient, parameter, states)

    def _views(self, window: np.ndarray, one, name: str, start: int, stop: int) -> Iterator[tuple[np.ndarray, int]]:
        """What a window on elements start .. stop - 1 has of each part, one after another, and the byte of the part at which it
        begins."""
        shape, place = self._model.program.parameters[name].shape, 0
        for part in one.parts:
            cut = part.cut(shape, start, stop)
            end = place + part.bytes_of(cut.stop - cut.start, self._workload.dtype)
            yield window[place:end].view(part.dtype or self._workload.dtype), part.bytes_of(cut.start, self._workload.dtype)
            place = end

    def _move(self, way: str, waits: bool, name: str, window: np.ndarray, start: int, stop: int) -> None:
        """States of a piece between disk and window."""
        one = self._by_name.get(name)
        if self.measuring or one is None:
            return
        file = one.states.file
        for number, (view, at) in enumerate(self._views(window, one, name, start, stop)):
            if waits:
                file.wait(way, (name, number), at)
            elif way == "read":
                file.read((name, number), view, at)
            else:
                file.write((name, number), view, at)
