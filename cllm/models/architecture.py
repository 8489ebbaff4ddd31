"""`Architecture`: what a model is before it has arrays: its settings, and how they are wired."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from cllm.errors import ConfigError
from cllm.locate import module_of
from cllm.program.dims import batch_letters, resolve
from cllm.program.program import Program
from cllm.program.wiring import Wiring
from cllm.weights.parts import Part


class Architecture(ABC):
    """Base of a family of models: a subclass is a frozen dataclass whose fields are the settings.

    A family over tokens has the fields ``vocab_size`` and ``max_seq_len``; the second bounds the length of sequences.

    Class attributes
    ----------------
    family : str
        The name of a family that is built in; "" for a user's own.
    causal : bool
        A later token changes no earlier output. The tests of the laws hold the family to it, and sampling needs it.
    parameter_groups : dict of tuple of str by str
        Words for groups of parameters, and how names of their parameters begin, without ``blocks.3.``; tables of memory
        show them. What none names stands under its step.
    model_types, head : tuple of str, str
        Of a family that the ecosystem's files hold: what config.json calls it, and the name of an untied head's tensor.
    """

    family: ClassVar[str] = ""
    causal: ClassVar[bool] = False
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    model_types: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[str] = ""

    @abstractmethod
    def wire(self, w: Wiring) -> None:
        """Add the model's layers to `w`, one after the other, the head last."""

    @property
    def program(self) -> Program:
        """The settings wired: a straight line of layers."""
        return program_of(self)

    def example_batch(self, rng: np.random.Generator, batch_size: int, seq_len: int | None) -> dict[str, np.ndarray]:
        """A drawn batch, every feed by name, for comparisons, profiles and proofs; families with other feeds than tokens
        and targets give their own.

        Parameters
        ----------
        rng : Generator
        batch_size : int
        seq_len : int or None

        Raises
        ------
        ConfigError
            When the family must define it itself.
        """
        feeds = self.program.feeds
        if not set(feeds) <= {"tokens", "targets"} or any(feed.high is None for feed in feeds.values()):
            raise ConfigError(f"{type(self).__name__}.example_batch", "must be defined by a family that is fed more than "
                              "tokens and targets", ", ".join(feeds) or "nothing",
                              "Define example_batch(rng, batch_size, seq_len) and return arrays by name.")
        letters = batch_letters(batch_size, seq_len)
        return {name: rng.integers(0, feed.high, resolve(feed.shape, letters)).astype(np.int32) for name, feed in feeds.items()}

    def describe(self) -> str:
        """The model in a few words, for captions: its class and its settings."""
        return ", ".join([type(self).__name__, *(f"{name} {value}" for name, value in self.to_dict().items())])
    @classmethod
    def from_config(cls, config: Mapping) -> "Architecture":
        """The settings in a config.json; families with `model_types` have it.

        Raises
        ------
        ConfigError
            When a setting is not built.
        """
        raise cls._without_files()

    def to_config(self) -> dict:
        """config.json of these settings; families with `model_types` have it."""
        raise self._without_files()

    def tensors(self, names: Collection[str] | None) -> dict[str, Part]:
        """Every tensor of the model by its name in the ecosystem's files; families with `model_types` have it.

        Parameters
        ----------
        names : collection of str or None
            Names that a file has, where they may differ; None is as transformers writes them.
        """
        raise self._without_files()

    @staticmethod
    def is_buffer(name: str) -> bool:
        """Whether a tensor in a file is no parameter, and is left out."""
        return False

    @classmethod
    def _without_files(cls) -> ConfigError:
        return ConfigError(f"save_pretrained({cls.__name__})", "must be of a family that the ecosystem's files hold", "another",
                           "Keep the model with model.save(path), which any model can.")

    def to_dict(self) -> dict:
        """Every setting by name; ``type(self)(**d)`` makes it again."""
        return asdict(self)


@lru_cache(maxsize=64)
def _wired(architecture: Architecture) -> Program:
    wiring = Wiring(longest=getattr(architecture, "max_seq_len", None))
    architecture.wire(wiring)
    return wiring.program()


def program_of(architecture: Architecture) -> Program:
    """The program of an architecture; equal ones share it.

    Raises
    ------
    ConfigError
        When it is no frozen dataclass.
    DeclarationError
        When its layers cannot be wired so.
    """
    checked_architecture("architecture", architecture)
    try:
        hash(architecture)
    except TypeError as error:
        raise ConfigError(type(architecture).__name__, "must have settings that can be hashed", str(error),
                          "Make it a frozen dataclass of numbers, texts and tuples.") from error
    return _wired(architecture)


def checked_architecture(where: str, value) -> Architecture:
    """`value` when it is an instance of an architecture; otherwise `ConfigError`."""
    if not isinstance(value, Architecture) or not is_dataclass(value):
        got = value.__name__ if isinstance(value, type) else type(value).__name__
        raise ConfigError(where, "must be an architecture: a frozen dataclass that derives from cllm.Architecture", got,
                          "Pass for example cllm.ModelConfig(...), or an instance of your own class.")
    return value


def record_of(architecture: Architecture) -> dict:
    """What reports and files of JSON say of a model: ``family`` and, as plain data, ``config``.

    Raises
    ------
    ConfigError
        When a setting has no such form.
    """
    kind = type(architecture)
    try:
        return {"family": family_name(kind), "config": json.loads(json.dumps(architecture.to_dict()))}
    except TypeError as error:
        raise ConfigError(kind.__name__, "must have settings that JSON can hold", str(error),
                          "Make them numbers, texts and tuples, or give the class its own to_dict.") from error


def metadata_of(architecture: Architecture, dtype: str, compute: str = "float32") -> dict[str, str]:
    """What a file of weights says of its model: family, settings, dtype, and how it computes where not in that; as texts."""
    record = record_of(architecture)
    return {"family": record["family"], "config": json.dumps(record["config"]), "dtype": dtype,
            **({"compute": compute} if compute != "float32" else {})}


def family_name(kind: type[Architecture]) -> str:
    """The name under which files record a family: its own, or for a user's the module and class, which are never run."""
    return kind.family or f"{module_of(kind)}:{kind.__qualname__}"
