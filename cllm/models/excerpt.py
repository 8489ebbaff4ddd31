"""Models that stand for others: what is measured in place of the whole."""

from collections import defaultdict
from dataclasses import dataclass

from cllm.models.architecture import Architecture
from cllm.models.model import Model
from cllm.program.computing import with_compute
from cllm.program.program import Program
from cllm.program.trained import Patterns, checked_patterns, with_trained
from cllm.program.wiring import Wiring


@dataclass(frozen=True)
class Used(Architecture):
    """A model as it is used: what of it is trained, and how it computes, as of `Model`."""

    whole: Architecture
    trainable: tuple[str, ...] | None = None
    compute: str = "float32"

    @staticmethod
    def of(whole: Architecture, trainable: Patterns = None, compute: str | None = None) -> "Used":
        """The model, used so."""
        return Used(whole, checked_patterns("trainable", trainable), compute or "float32")

    def wire(self, w: Wiring) -> None:
        self.whole.wire(w)

    @property
    def program(self) -> Program:
        return with_compute(with_trained(self.whole.program, self.trainable), self.compute)


@dataclass(frozen=True)
class Excerpt(Architecture):
    """A model with a few of another's blocks."""

    whole: Used
    blocks: tuple[int, ...]

    def wire(self, w: Wiring) -> None:
        self.whole.wire(w)

    @property
    def program(self) -> Program:
        return self.whole.program.with_blocks(self.blocks)

    @staticmethod
    def of(whole: Architecture, most: int) -> "Excerpt":
        """The first `most` blocks of each kind: frozen blocks are others than trained ones."""
        used = whole if isinstance(whole, Used) else Used(whole)
        program, taken = used.program, defaultdict(list)
        for block in range(program.n_blocks):
            taken[program.kind_of_block(block)].append(block)
        return Excerpt(used, tuple(sorted(block for kind in taken.values() for block in kind[:most])))

    def model(self, dtype: str) -> Model:
        """Its arrays, used as the whole is."""
        program = self.program
        return Model(self, dtype=dtype, trainable=program.trained if program.frozen else None, compute=self.whole.compute)
