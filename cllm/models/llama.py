"""The LLaMA family (Touvron et al. 2023) and those built like it: Mistral, Qwen 2 and 3, SmolLM 3, Phi 3,
OLMo 2, Granite.

Pre-norm blocks of RMS norm, grouped queries turned by their position, and a gated feed-forward layer. What they differ in is
a setting; `model_type` says whose files these are (`llama_files.py`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

from cllm.checks import checked_flag, checked_real, checked_size, keep
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
from cllm.models import llama_files
from cllm.models.architecture import Architecture
from cllm.program.wiring import Wiring
from cllm.weights.parts import Part

STD = 0.02  # standard deviation of initial weights, as the family's own configs have it
SIZES = ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "max_seq_len", "n_kv_heads", "head_dim")


@dataclass(frozen=True, slots=True)
class Multipliers:
    """What Granite multiplies by: embeddings, scores (None is 1 / sqrt(D)), each branch before it is added; and `logits`, by
    which it divides."""

    embedding: float = 1.0
    scores: float | None = None
    branch: float = 1.0
    logits: float = 1.0

    def __post_init__(self):
        for name in ("embedding", "scores", "branch", "logits"):
            if getattr(self, name) is not None or name != "scores":
                keep(self, "Multipliers", name, checked_real, 0.0, inf, "()")


@dataclass(frozen=True, slots=True)
class Llama(Architecture):
    """Settings of a model of the family.

    Parameters
    ----------
    vocab_size, n_layers, d_model, n_heads, d_ff, max_seq_len : int
        V, number of blocks, C, H, F, and the longest T.
    n_kv_heads, head_dim : int or None
        K and D; None is H, and C / H.
    rope : Rope
    norm_eps : float
    qkv_bias, out_bias, mlp_bias : bool
    qk_norm : {"none", "head", "row"}
        RMS norm of each query and key head, or of all of a row together.
    norm_after : bool
        A block's two norms stand after its branches and not before them.
    rotary : int or None
        Channels of a head that turn, R; None is D.
    turned : tuple of bool
        Which blocks turn queries and keys; empty is all.
    window : int or None
        Keys that a row of a windowed block sees.
    windowed : tuple of bool
        Which blocks have the window; empty is all.
    activation : {"silu", "gelu", "gelu_erf", "relu"}
    multipliers : Multipliers
    tied : bool
        The head shares the token embedding.
    pad : int or None
        A token whose embedding no lookup trains, as transformers has it.
    model_type : {"llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "olmo2", "granite"}

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
    n_kv_heads: int | None = None
    head_dim: int | None = None
    rope: Rope = Rope()
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = "none"
    norm_after: bool = False
    rotary: int | None = None
    turned: tuple[bool, ...] = ()
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    activation: str = "silu"
    multipliers: Multipliers = Multipliers()
    tied: bool = False
    pad: int | None = None
    model_type: str = "llama"

    family: ClassVar[str] = "llama"
    causal: ClassVar[bool] = True
    model_types: ClassVar[tuple[str, ...]] = tuple(llama_files.ARCHITECTURES)
    head: ClassVar[str] = llama_files.HEAD

    def __post_init__(self):
        defaults = {"n_kv_heads": self.n_heads, "head_dim": self.d_model // max(1, self.n_heads)}
        for name in SIZES:
            value = getattr(self, name)
            value = defaults[name] if value is None and name in defaults else value
            object.__setattr__(self, name, checked_size(f"Llama({name}=...)", value))
        for name in ("qkv_bias", "out_bias", "mlp_bias", "norm_after", "tied"):
            object.__setattr__(self, name, checked_flag(f"Llama({name}=...)", getattr(self, name)))
        object.__setattr__(self, "norm_eps", checked_real("Llama(norm_eps=...)", self.norm_eps, 0.0, 1.0, "()"))
        for name, kind in (("rope", Rope), ("multipliers", Multipliers)):
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, kind(**getattr(self, name)))
        for name in ("windowed", "turned"):
            object.__setattr__(self, name, tuple(bool(block) for block in getattr(self, name)))
        turning = self.head_dim if self.rotary is None else self.rotary
        object.__setattr__(self, "rotary", checked_size("Llama(rotary=...)", turning, 0, self.head_dim))
        if self.window is not None:
            object.__setattr__(self, "window", checked_size("Llama(window=...)", self.window))
        if self.pad is not None:
            object.__setattr__(self, "pad", checked_size("Llama(pad=...)", self.pad, 0, self.vocab_size - 1))
        kinds = llama_files.ACTIVATIONS
        for name, fits, must in (
                ("n_kv_heads", self.n_heads % self.n_kv_heads == 0, f"must divide n_heads = {self.n_heads}"),
                ("qk_norm", self.qk_norm in ("none", "head", "row"), "must be one of none, head, row"),
                ("rotary", self.rotary % 2 == 0, "must be even: channels turn in pairs"),
                ("windowed", len(self.windowed) in (0, self.n_layers), f"must have {self.n_layers} places, or none"),
                ("turned", len(self.turned) in (0, self.n_layers), f"must have {self.n_layers} places, or none"),
                ("activation", self.activation in kinds, f"must be one of {', '.join(kinds)}"),
                ("model_type", self.model_type in self.model_types, f"must be one of {', '.join(self.model_types)}")):
            if not fits:
                raise ConfigError(f"Llama({name}=...)", must, repr(getattr(self, name)), "Choose another value.")

    def wire(self, w: Wiring) -> None:
        C, H, K, D, E = self.d_model, self.n_heads, self.n_kv_heads, self.head_dim, self.n_heads + 2 * self.n_kv_heads
        narrow, by = STD / sqrt(2 * self.n_layers), self.multipliers
        tables = {name: f"rope.{name}" for name in ("cos", "sin")}
        x = w.add("embed", Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, kind="none", std=STD, pad=self.pad,
                                     scale=by.embedding), {"weight": "tok_emb.weight"})
        for number in range(self.n_layers):
            window = self.window if not self.windowed or self.windowed[number] else None
            rope = self.rope if not self.turned or self.turned[number] else None
            with w.block(number):
                h = x if self.norm_after else w.add("ln1", RMSNorm(C=C, eps=self.norm_eps), x=x)
                h = w.add("attn.qkv", Linear(I=C, O=E * D, bias=self.qkv_bias, group="attn", std=STD), x=h)
                if self.qk_norm != "none":
                    h = w.add("attn.qk_norm", HeadNorm.of(H, K, D, self.qk_norm == "head", eps=self.norm_eps),
                              {f"{part}_weight": f"blocks.{number}.attn.{part}_norm.weight" for part in "qk"}, qkv=h)
                o = w.add("attn", GroupedAttention(H=H, K=K, D=D, E=E, P=self.max_seq_len, Z=self.rotary // 2, rope=rope,
                                                   window=window, scale=by.scores), {**tables, "first": "attn.first"}, qkv=h)
                o = w.add("attn.out", Linear(I=H * D, O=C, bias=self.out_bias, group="attn", std=narrow), x=o)
                if self.norm_after:
                    o = w.add("ln1", RMSNorm(C=C, eps=self.norm_eps), x=o)
                x = w.add("res1", Residual(C=C, scale=by.branch), x=x, branch=o)
                h = x if self.norm_after else w.add("ln2", RMSNorm(C=C, eps=self.norm_eps), x=x)
                z = w.add("mlp.fc1", Linear(I=C, O=2 * self.d_ff, bias=self.mlp_bias, group="mlp", std=STD), x=h)
                a = w.add("mlp.act", GatedActivation(F=self.d_ff, kind=self.activation), x=z)
                m = w.add("mlp.fc2", Linear(I=self.d_ff, O=C, bias=self.mlp_bias, group="mlp", std=narrow), x=a)
                if self.norm_after:
                    m = w.add("ln2", RMSNorm(C=C, eps=self.norm_eps), x=m)
                x = w.add("res2", Residual(C=C, scale=by.branch), x=x, branch=m)
        h = w.add("ln_f", RMSNorm(C=C, eps=self.norm_eps), x=x)
        w.add("head", CrossEntropyHead(V=self.vocab_size, C=C, std=STD, scale=1.0 / by.logits),
              {"weight": "tok_emb.weight" if self.tied else "head.weight"}, x=h)

    def describe(self) -> str:
        return (f"{self.model_type}, {self.n_layers} layer{'' if self.n_layers == 1 else 's'}, C {self.d_model}, "
                f"H {self.n_heads} over {self.n_kv_heads}, F {self.d_ff}, V {self.vocab_size}")

    @classmethod
    def from_config(cls, config: Mapping) -> "Llama":
        return cls(**llama_files.settings(config))

    def to_config(self) -> dict:
        return llama_files.config_of(self)

    def tensors(self, names: Collection[str] | None) -> dict[str, Part]:
        return llama_files.tensors(self, names)

    @staticmethod
    def is_buffer(name: str) -> bool:
        return llama_files.is_buffer(name)
