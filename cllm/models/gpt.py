"""`ModelConfig` and `GPT`: pre-norm blocks, causal attention, a feed-forward layer, a head with its loss (docs/model.md)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from itertools import count
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from cllm.checks import checked_flag, checked_real, checked_size, checked_word, keep
from cllm.errors import ConfigError
from cllm.layers import Activation, Dropout, Embedding, LayerNorm, Linear, Residual
from cllm.models import gpt2
from cllm.models.architecture import Architecture
from cllm.models.documents import ATTENTIONS, CRYSTALLINE, HEADS, PROJECTIONS, checked_parts
from cllm.models.model import Model
from cllm.program.trained import Patterns
from cllm.program.wiring import Wiring
from cllm.weights.parts import Part

CHOICES = {
    "qkv": tuple(PROJECTIONS),
    "positions": ("learned", "sinusoidal", "spiral", "clock", "prime", "none"),
    "activation": ("gelu", "relu", "tanh"),
    "attention": tuple(ATTENTIONS),
    "loss": tuple(HEADS),
}

PRESETS = {
    "tiny": (256, 2, 64, 4, 256, 256),
    "small": (256, 6, 512, 8, 2048, 1024),
    "gpt2": (50257, 12, 768, 12, 3072, 1024),
}

GROUPS = {"attention": ("attn.",), "feed-forward": ("mlp.",), "layer norms": ("ln1.", "ln2."),
          "embeddings": ("tok_emb.", "pos_emb."), "final norm": ("ln_f.",), "head": ("head.",)}

STD = 0.02  # standard deviation of initial weights (Radford et al. 2019)


@dataclass(frozen=True, slots=True)
class ModelConfig(Architecture):
    """Shape and kind of a transformer language model.

    Parameters
    ----------
    vocab_size, n_layers, d_model, n_heads, d_ff, max_seq_len : int
        V, number of blocks, C, H, F, and the longest T the model takes; each at least 1, C a multiple of H.
    qkv : {"full", "lattice"}
        One C x 3C product, or H block-diagonal D x D products for each of q, k and v.
    qkv_bias, out_proj, tied : bool
        A bias on q, k, v; a projection after attention; the head shares the token embedding.
    positions, activation, attention, loss : str
        See ``CHOICES`` for what each may be.
    dropout : float
        Probability of dropping, in [0, 1).
    norm_eps : float
        Added to the variance inside the root.
    crystalline : tuple of str
        Parts of crystalline attention that are on, among ``CRYSTALLINE``; kept in that order. Only counts with
        ``attention="crystalline"``.

    Raises
    ------
    ConfigError
        When a value is outside what it may be.
    """

    vocab_size: int
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    max_seq_len: int
    qkv: str = "full"
    qkv_bias: bool = True
    out_proj: bool = True
    positions: str = "learned"
    activation: str = "gelu"
    tied: bool = True
    attention: str = "softmax"
    dropout: float = 0.0
    norm_eps: float = 1e-5
    loss: str = "cross_entropy"
    crystalline: tuple[str, ...] = CRYSTALLINE

    family: ClassVar[str] = "gpt"
    causal: ClassVar[bool] = True
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = GROUPS
    model_types: ClassVar[tuple[str, ...]] = (gpt2.MODEL_TYPE,)
    head: ClassVar[str] = gpt2.HEAD
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = CHOICES
    presets: ClassVar[Mapping[str, tuple[int, ...]]] = PRESETS

    def __post_init__(self):
        for name in ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "max_seq_len"):
            keep(self, "ModelConfig", name, checked_size)
        if self.d_model % self.n_heads:
            raise ConfigError("ModelConfig(n_heads=...)", f"must divide d_model = {self.d_model}", str(self.n_heads),
                              "Choose d_model as a multiple of n_heads.")
        for name, allowed in CHOICES.items():
            keep(self, "ModelConfig", name, checked_word, allowed)
        for name in ("qkv_bias", "out_proj", "tied"):
            keep(self, "ModelConfig", name, checked_flag)
        object.__setattr__(self, "crystalline", checked_parts(self.crystalline))
        if self.attention == "crystalline" and "rotation" in self.crystalline and self.d_model // self.n_heads % 2:
            raise ConfigError("ModelConfig(crystalline=...)", "rotation needs an even number of channels in a head",
                              str(self.d_model // self.n_heads), "Choose other sizes, or leave the rotation out.")
        keep(self, "ModelConfig", "dropout", checked_real, 0.0, 1.0)
        keep(self, "ModelConfig", "norm_eps", checked_real, 0.0, 1.0, "()")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":
        """The preset of that name, with single settings changed by keyword.

        Raises
        ------
        ConfigError
            When there is no such preset or setting.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ConfigError("ModelConfig.preset(name)", f"must be one of {', '.join(PRESETS)}", repr(name),
                              "Choose one of these, or give the sizes to ModelConfig.")
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise ConfigError("ModelConfig.preset(...)", f"settings must be among {', '.join(names)}",
                              ", ".join(unknown), "Check the spelling.")
        return cls(**{**dict(zip(names, PRESETS[name], strict=False)), **changes})

    def describe(self) -> str:
        return (f"{self.n_layers} layer{'' if self.n_layers == 1 else 's'}, C {self.d_model}, H {self.n_heads}, F {self.d_ff}, "
                f"V {self.vocab_size}")

    @classmethod
    def from_config(cls, config: Mapping) -> "ModelConfig":
        return cls(**gpt2.settings(config))

    def to_config(self) -> dict:
        return gpt2.config_of(self)

    def tensors(self, names: Collection[str] | None) -> dict[str, Part]:
        return gpt2.tensors(self, names)

    @staticmethod
    def is_buffer(name: str) -> bool:
        return gpt2.is_buffer(name)

    def wire(self, w: Wiring) -> None:
        C = self.d_model
        narrow = STD / sqrt(2 * self.n_layers)  # projections back into the residual stream
        streams = count()  # numbers of the dropout masks
        x = w.add("embed", Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, kind=self.positions, std=STD),
                  {"weight": "tok_emb.weight", "positions": "pos_emb.weight", "table": "positions"})
        stream = next(streams)
        if self.dropout:
            x = w.add("drop", Dropout(C=C, rate=self.dropout, stream=stream), x=x)
        for number in range(self.n_layers):
            with w.block(number):
                h = w.add("ln1", LayerNorm(C=C, eps=self.norm_eps), x=x)
                qkv = w.add("attn.qkv", PROJECTIONS[self.qkv](self, STD), x=h)
                o = w.add("attn", *ATTENTIONS[self.attention](self), qkv=qkv)
                if self.out_proj:
                    o = w.add("attn.out", Linear(I=C, O=C, group="attn", std=narrow), x=o)
                x = w.add("res1", Residual(C=C, rate=self.dropout, stream=next(streams)), x=x, branch=o)
                h = w.add("ln2", LayerNorm(C=C, eps=self.norm_eps), x=x)
                z = w.add("mlp.fc1", Linear(I=C, O=self.d_ff, group="mlp", std=STD), x=h)
                a = w.add("mlp.act", Activation(F=self.d_ff, kind=self.activation), x=z)
                m = w.add("mlp.fc2", Linear(I=self.d_ff, O=C, group="mlp", std=narrow), x=a)
                x = w.add("res2", Residual(C=C, rate=self.dropout, stream=next(streams)), x=x, branch=m)
        h = w.add("ln_f", LayerNorm(C=C, eps=self.norm_eps), x=x)
        w.add("head", *HEADS[self.loss](self, STD), x=h)


class GPT(Model):
    """The model of a `ModelConfig`.

    Parameters
    ----------
    config : ModelConfig
    seed, dtype, trainable, arrays, compute : as of `Model`

    Raises
    ------
    ConfigError
        When an argument is outside what it may be.
    """

    def __init__(self, config: ModelConfig, seed: int | None = 0, dtype: str = "float32", trainable: Patterns = None,
                 arrays: Mapping[str, np.ndarray] | None = None, compute: str = "float32"):
        if not isinstance(config, ModelConfig):
            raise ConfigError("GPT(config)", "must be a ModelConfig", type(config).__name__,
                              "Make one with cllm.ModelConfig(...) or ModelConfig.preset(name).")
        super().__init__(config, seed, dtype, trainable, arrays, compute)

    @property
    def config(self) -> ModelConfig:
        """Its settings: another name of `architecture`."""
        return self.architecture
