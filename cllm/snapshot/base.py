"""What a run leaves as it was, by reference: where it was loaded from, and the digest that tells it from any other."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cllm.checks import shown
from cllm.errors import CllmError, SnapshotError
from cllm.models.adapted import Adapted, trained_of
from cllm.models.adapters import with_adapters
from cllm.models.architecture import Architecture
from cllm.models.choosing import model_at
from cllm.models.model import Model
from cllm.program.trained import Patterns
from cllm.tensors import pieces_of

ELSEWHERE = "or name where they are: --base, of cllm finetune --model, in Python base=..."
PIECE = 1 << 24  # bytes that are hashed at a time: of an array that is mapped from a file no more has to be in memory


@dataclass(frozen=True, slots=True)
class Base:
    """The parameters of a model that are frozen and not an adapter's.

    Parameters
    ----------
    place : Path
        Of other people's files, or of a file that `Model.save` wrote.
    sha256 : str
        Of their names, dtypes, shapes and values in memory, whatever the form in which a file holds them.
    """

    place: Path
    sha256: str

    @classmethod
    def of(cls, model: Model, place: str | Path) -> "Base | None":
        """That of a model; None where nothing is frozen."""
        return cls(Path(place).absolute(), base_sha256(model)) if base_names(model) else None

    @classmethod
    def restored(cls, plain: Mapping, place: str | Path | None = None) -> "Base":
        """What `to_dict` gave, at another place where one is given."""
        return cls(Path(plain["place"] if place is None else place).absolute(), str(plain["sha256"]))

    def to_dict(self) -> dict:
        """The same as plain data."""
        return {"place": str(self.place), "sha256": self.sha256}

    def check(self, model: Model) -> None:
        """Refuse a model of which what is frozen is other than it was.

        Raises
        ------
        SnapshotError
        """
        if base_sha256(model) != self.sha256:
            raise SnapshotError(f"base {self.place}", "must be what it was when the run began", "other weights",
                                f"Put the files as they were back, {ELSEWHERE}")

    def model(self, architecture: Architecture, dtype: str, trainable: Patterns, mapped: bool) -> Model:
        """The model with what is frozen in it, perhaps mapped, which `check` has yet to look at; the others are not read yet.

        Raises
        ------
        SnapshotError
            When the files have gone, cannot be read, or hold another model.
        """
        base = architecture.base if isinstance(architecture, Adapted) else architecture
        trained = trained_of(architecture, trainable)
        try:
            found = model_at(self.place, dtype, base, trained, mapped and trained is not None)
        except CllmError as error:
            raise SnapshotError(f"base {self.place}", "must still be there, for snapshots hold only what was trained",
                                str(error), f"Put the files back, {ELSEWHERE}") from error
        if found.architecture != base:
            raise SnapshotError(f"base {self.place}", f"must be the model that was tuned, {base.describe()}",
                                found.architecture.describe(), "Name the files with which the run began.")
        made = found if base is architecture else with_adapters(found, architecture, None)
        made.trainable = trainable
        return made


def base_names(model: Model) -> list[str]:
    """Names of the parameters that a base has as they are."""
    architecture = model.architecture
    base = architecture.base if isinstance(architecture, Adapted) else architecture
    return sorted(model.program.frozen & base.program.parameters.keys())


def base_sha256(model: Model) -> str:
    """Digest of these."""
    digest = hashlib.sha256()
    for name in base_names(model):
        array = model.parameters[name]
        digest.update(f"{name} {array.dtype} {shown(array.shape)} ".encode())
        for piece in pieces_of(array):
            raw = piece.view(np.uint8)
            for start in range(0, raw.size, PIECE):
                digest.update(raw[start:start + PIECE])
    return digest.hexdigest()
