"""Gemma 2 and 3 (Gemma Team 2024, 2025): norms by 1 + w before and after each branch, blocks that see a window and blocks
that see all, scores and logits under a soft cap or normalised queries and keys.

    x = x + norm(attention(norm(x)));  x = x + norm(mlp(norm(x)))
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

from cllm.checks import checked_flag, checked_real, checked_size
from cllm.errors import ConfigError
from cllm.layers import (
    CrossEntropyHead,
    Embedding,
    GatedActivation,
    GroupedAttention,
    HeadNorm,
    Linear,
    Residual,
    RMSNorm,
    Rope,
)
from cllm.models import gemma_files
from cllm.models.architecture import Architecture
from cllm.program.wiring import Wiring
from cllm.weights.parts import Part

STD = 0.02  # standard deviation of initial weights, as the family's own configs have it
SIZES = ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "max_seq_len", "n_kv_heads", "head_dim", "window")


@dataclass(frozen=True, slots=True)
class Gemma(Architecture):
    """Settings of a model of the family.

    Parameters
    ----------
    vocab_size, n_layers, d_model, n_heads, d_ff, max_seq_len : int
        V, number of blocks, C, H, F, and the longest T.
    n_kv_heads, head_dim : int
        K and D.
    window : int
        Keys that a row of a windowed block sees.
    windowed : tuple of bool
        Which blocks have the window; empty is all.
    rope : Rope
    local_rope : Rope or None
        Of windowed blocks; None is `rope`.
    query_scalar : int or None
        Scores are divided by its root; None is D.
    attn_softcap, logit_softcap : float or None
        c of c tanh(s / c), of scores and of logits.
    qk_norm : bool
        RMS norm of each query and key head.
    attention_bias : bool
    norm_eps : float
    activation : {"gelu", "gelu_erf", "silu", "relu"}
    tied : bool
        The head shares the token embedding.
    pad : int or None
        A token whose embedding no lookup trains, as transformers has it.
    model_type : {"gemma2", "gemma3_text"}

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
    n_kv_heads: int
    head_dim: int
    window: int
    windowed: tuple[bool, ...] = ()
    rope: Rope = Rope()
    local_rope: Rope | None = None
    query_scalar: int | None = None
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    qk_norm: bool = False
    attention_bias: bool = False
    norm_eps: float = 1e-6
    activation: str = "gelu"
    tied: bool = True
    pad: int | None = None
    model_type: str = "gemma2"

    family: ClassVar[str] = "gemma"
    causal: ClassVar[bool] = True
    model_types: ClassVar[tuple[str, ...]] = tuple(gemma_files.ARCHITECTURES)
    head: ClassVar[str] = gemma_files.HEAD

    def __post_init__(self):
        for name in SIZES:
            object.__setattr__(self, name, checked_size(f"Gemma({name}=...)", getattr(self, name)))
        for name in ("qk_norm", "attention_bias", "tied"):
            object.__setattr__(self, name, checked_flag(f"Gemma({name}=...)", getattr(self, name)))
        object.__setattr__(self, "norm_eps", checked_real("Gemma(norm_eps=...)", self.norm_eps, 0.0, 1.0, "()"))
        for name in ("attn_softcap", "logit_softcap"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked_real(f"Gemma({name}=...)", getattr(self, name), 0.0, inf, "()"))
        if self.query_scalar is not None:  # which transformers takes as a whole number alone
            object.__setattr__(self, "query_scalar", checked_size("Gemma(query_scalar=...)", self.query_scalar))
        for name in ("rope", "local_rope"):
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, Rope(**getattr(self, name)))
        object.__setattr__(self, "windowed", tuple(bool(block) for block in self.windowed))
        if self.pad is not None:
            object.__setattr__(self, "pad", checked_size("Gemma(pad=...)", self.pad, 0, self.vocab_size - 1))
        kinds = gemma_files.ACTIVATIONS
        for name, fits, must in (
                ("n_kv_heads", self.n_heads % self.n_kv_heads == 0, f"must divide n_heads = {self.n_heads}"),
                ("head_dim", self.head_dim % 2 == 0, "must be even: channels turn in pairs"),
                ("windowed", len(self.windowed) in (0, self.n_layers), f"must have {self.n_layers} places, or none"),
                ("activation", self.activation in kinds, f"must be one of {', '.join(kinds)}"),
                ("model_type", self.model_type in self.model_types, f"must be one of {', '.join(self.model_types)}")):
            if not fits:
                raise ConfigError(f"Gemma({name}=...)", must, repr(getattr(self, name)), "Choose another value.")

    def wire(self, w: Wiring) -> None:
        C, H, K, D, E = self.d_model, self.n_heads, self.n_kv_heads, self.head_dim, self.n_heads + 2 * self.n_kv_heads
        narrow, norm = STD / sqrt(2 * self.n_layers), RMSNorm(C=C, eps=self.norm_eps, unit_offset=True)
        scale = None if self.query_scalar is None else self.query_scalar ** -0.5
        x = w.add("embed", Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, kind="none", std=STD, pad=self.pad,
                                     scale=sqrt(C)), {"weight": "tok_emb.weight"})
        for number in range(self.n_layers):
            local = not self.windowed or self.windowed[number]
            rope, turn = (self.rope, "rope") if self.local_rope is None or not local else (self.local_rope, "local_rope")
            with w.block(number):
                h = w.add("ln1", norm, x=x)
                h = w.add("attn.qkv", Linear(I=C, O=E * D, bias=self.attention_bias, group="attn", std=STD), x=h)
                if self.qk_norm:
                    h = w.add("attn.qk_norm", HeadNorm.of(H, K, D, True, eps=self.norm_eps, unit_offset=True),
                              {f"{part}_weight": f"blocks.{number}.attn.{part}_norm.weight" for part in "qk"}, qkv=h)
                o = w.add("attn", GroupedAttention(H=H, K=K, D=D, E=E, P=self.max_seq_len, Z=D // 2, rope=rope,
                                                   window=self.window if local else None, scale=scale,
                                                   softcap=self.attn_softcap),
                          {"cos": f"{turn}.cos", "sin": f"{turn}.sin", "first": "attn.first"}, qkv=h)
                o = w.add("attn.out", Linear(I=H * D, O=C, bias=self.attention_bias, group="attn", std=narrow), x=o)
                o = w.add("ln1_after", norm, x=o)
                x = w.add("res1", Residual(C=C), x=x, branch=o)
                h = w.add("ln2", norm, x=x)
                z = w.add("mlp.fc1", Linear(I=C, O=2 * self.d_ff, bias=False, group="mlp", std=STD), x=h)
                a = w.add("mlp.act", GatedActivation(F=self.d_ff, kind=self.activation), x=z)
                m = w.add("mlp.fc2", Linear(I=self.d_ff, O=C, bias=False, group="mlp", std=narrow), x=a)
                m = w.add("ln2_after", norm, x=m)
                x = w.add("res2", Residual(C=C), x=x, branch=m)
        h = w.add("ln_f", norm, x=x)
        w.add("head", CrossEntropyHead(V=self.vocab_size, C=C, std=STD, softcap=self.logit_softcap),
              {"weight": "tok_emb.weight" if self.tied else "head.weight"}, x=h)

    @classmethod
    def from_config(cls, config: Mapping) -> "Gemma":
        return cls(**gemma_files.settings(config))

    def to_config(self) -> dict:
        return gemma_files.config_of(self)

    def tensors(self, names: Collection[str] | None) -> dict[str, Part]:
        return gemma_files.tensors(self, names)

    @staticmethod
    def is_buffer(name: str) -> bool:
        return gemma_files.is_buffer(name)
