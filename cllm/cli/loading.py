"""A trained model by its place: a run, a snapshot, a file of ours, or other people's files; and how it takes text."""

from dataclasses import dataclass
from pathlib import Path

import click

from cllm.errors import ConfigError, SnapshotError
from cllm.models.architecture import Architecture
from cllm.models.choosing import is_files, model_in
from cllm.models.families import load
from cllm.models.model import Model
from cllm.models.saving import Saved
from cllm.pretrained import Speech
from cllm.snapshot import load_snapshot, read_state
from cllm.tokenizer import BPETokenizer, ByteTokenizer
from cllm.train.data import TOKENIZER, snapshot_tokenizer
from cllm.train.keeper import Keeper


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, its tokenizer where that is known, and where it was found; `source` is where other people's files of it are."""

    model: Model
    tokenizer: ByteTokenizer | BPETokenizer | None
    path: Path
    source: Path | None = None

    def speech(self) -> Speech | None:
        """What stands beside the weights that it began with; None where they have gone, or it was trained on with another
        tokenizer."""
        if self.source is None or not self.source.exists() or isinstance(self.tokenizer, ByteTokenizer):
            return None
        found = Speech.beside(self.source)
        return found if self.tokenizer is None or self.tokenizer.name == found.tokenizer.name else None

    def own_tokenizer(self) -> ByteTokenizer | BPETokenizer:
        """That which it was trained with; bytes where none is known."""
        speech = self.speech() if self.tokenizer is None else None
        return self.tokenizer or (ByteTokenizer() if speech is None else speech.tokenizer)


def base_option(command):
    """Option ``--base``: where the base of a run of adapters is now."""
    return click.option("--base", type=click.Path(exists=True, path_type=Path), default=None, show_default="where it was",
                        metavar="DIR|FILE", help="Of a run that trained a part: where the files of the rest are now.")(command)


def load_from(path: Path, best: bool = False, family: type[Architecture] | None = None, base: Path | None = None) -> Loaded:
    """The model at a place.

    Parameters
    ----------
    path : Path
        A run, one of its snapshots, a file that `Model.save` wrote, a directory with config.json, or a GGUF file.
    best : bool
        Of a run: the snapshot of the best evaluation instead of the latest.
    family : class or None
        Of a user's own model.
    base : Path or None
        As of `load_snapshot`.

    Raises
    ------
    ConfigError, SnapshotError, DataError
    """
    if is_files(path):
        return Loaded(model_in(path), None, path, path)
    if path.is_file():
        return Loaded(load(path, family), _tokenizer_beside(path), path)
    if not (path / "state.json").exists():
        keeper = Keeper(path)
        state = keeper.find()
        if state is None:
            raise SnapshotError(f"model {path}", "must be a run, a snapshot, or hold config.json", "a directory without these",
                                "Give the --out directory of cllm train, or a model's directory.")
        path = keeper.latest
        if best:
            path = _best_of(keeper, state)
    model, state = load_snapshot(path, architecture=family, base=base, mapped=True)
    source = None if model.source is None else model.source.directory
    if source is None:  # a run on examples may have had its tokenizer from elsewhere
        speech = state["training"].get("data", {}).get("data", {}).get("speech")
        source = Path(speech) if speech and Path(speech).exists() else None
    return Loaded(model, snapshot_tokenizer(path, state), path, source)


def write_pretrained(loaded: Loaded, model: Model, directory: Path, dtype: str | None) -> Saved:
    """Save a model in other people's form, with its tokenizer, and say so.

    Raises
    ------
    ConfigError
        When the directory is that of the base, without which the run could not be read again.
    """
    if loaded.model.program.frozen and loaded.source is not None and loaded.source.resolve() == directory.resolve():
        raise ConfigError(f"save into {directory}", "must not be the place of the base, which the run needs as it is",
                          "that place", "Choose another directory.")
    saved = model.save_pretrained(directory, dtype)
    if isinstance(loaded.tokenizer, BPETokenizer) and not (directory / TOKENIZER).exists():
        loaded.tokenizer.save(directory / TOKENIZER)
    click.echo(str(saved))
    if loaded.source is not None and not loaded.source.exists():
        click.echo(f"Note: {loaded.source} has gone: templates, generation settings and licence are not there", err=True)
    return saved


def _best_of(keeper: Keeper, state: dict) -> Path:
    """The snapshot of the best evaluation."""
    best = state["training"].get("best")
    path = None if best is None else keeper.latest.with_name(f"step-{best[0]:06d}")
    if path is None or not path.exists():
        raise SnapshotError(f"{keeper.out}, --best", "must have a snapshot of its best evaluation",
                            "none" if path is None else f"no {path.name}", "Leave --best out, or name a snapshot.")
    return path


def _tokenizer_beside(path: Path) -> ByteTokenizer | BPETokenizer | None:
    """The tokenizer in the directory of a model's file: that of a snapshot, or a tokenizer.json; None where there is none."""
    if (path.parent / "state.json").is_file():
        return snapshot_tokenizer(path.parent, read_state(path.parent))
    return BPETokenizer.load(path.parent) if (path.parent / TOKENIZER).is_file() else None
