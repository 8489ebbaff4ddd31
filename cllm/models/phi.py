"""Phi 1, 1.5 and 2 (Gunasekar et al. 2023; Javaheripi et al. 2023): attention and feed-forward layer side by side behind one
norm, biases everywhere, the head's too.

    h = LN(x);  x = x + attention(h) + mlp(h)
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from cllm.checks import checked_flag, checked_real, checked_size, keep
from cllm.errors import ConfigError
from cllm.layers import Activation, CrossEntropyHead, Embedding, GroupedAttention, LayerNorm, Linear, Residual, Rope
from cllm.models import hub
from cllm.models.architecture import Architecture
from cllm.program.wiring import Wiring
from cllm.weights.parts import Part

STD = 0.02  # standard deviation of initial weights, as the family's own configs have it
ACTIVATIONS = {"gelu": "gelu_new", "gelu_erf": "gelu", "relu": "relu", "silu": "silu"}
BUFFERS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq\Z")
PRODUCTS = {"self_attn.dense": "attn.out", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


@dataclass(frozen=True, slots=True)
class Phi(Architecture):
    """Settings of a model of the family.

    Parameters
    ----------
    vocab_size, n_layers, d_model, n_heads, d_ff, max_seq_len : int
        V, number of blocks, C, H, F, and the longest T.
    n_kv_heads : int or None
        K; None is H.
    rope : Rope
    rotary : int or None
        Channels of a head that turn, R; None is half of them.
    norm_eps : float
    activation : {"gelu", "gelu_erf", "relu", "silu"}
    tied : bool
        The head shares the token embedding; its bias is its own.
    pad : int or None
        A token whose embedding no lookup trains, as transformers has it.

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
    rope: Rope = Rope()
    rotary: int | None = None
    norm_eps: float = 1e-5
    activation: str = "gelu"
    tied: bool = False
    pad: int | None = None

    family: ClassVar[str] = "phi"
    causal: ClassVar[bool] = True
    model_types: ClassVar[tuple[str, ...]] = ("phi",)
    head: ClassVar[str] = "lm_head.weight"

    def __post_init__(self):
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        for name in ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "max_seq_len", "n_kv_heads"):
            keep(self, "Phi", name, checked_size)
        for name, fits, must in (
                ("n_heads", self.d_model % self.n_heads == 0, f"must divide d_model = {self.d_model}"),
                ("n_kv_heads", self.n_heads % self.n_kv_heads == 0, f"must divide n_heads = {self.n_heads}"),
                ("activation", self.activation in ACTIVATIONS, f"must be one of {', '.join(ACTIVATIONS)}")):
            if not fits:
                raise ConfigError(f"Phi({name}=...)", must, repr(getattr(self, name)), "Choose another value.")
        if self.rotary is None:
            object.__setattr__(self, "rotary", self.head_dim // 4 * 2)
        keep(self, "Phi", "rotary", checked_size, 0, self.head_dim)
        if self.rotary % 2:
            raise ConfigError("Phi(rotary=...)", "must be even: channels turn in pairs", str(self.rotary),
                              "Choose another value.")
        keep(self, "Phi", "norm_eps", checked_real, 0.0, 1.0, "()")
        keep(self, "Phi", "tied", checked_flag)
        if self.pad is not None:
            keep(self, "Phi", "pad", checked_size, 0, self.vocab_size - 1)
        if isinstance(self.rope, Mapping):
            object.__setattr__(self, "rope", Rope(**self.rope))

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    def wire(self, w: Wiring) -> None:
        C, H, K, D, E = self.d_model, self.n_heads, self.n_kv_heads, self.head_dim, self.n_heads + 2 * self.n_kv_heads
        narrow = STD / sqrt(2 * self.n_layers)
        x = w.add("embed", Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, kind="none", std=STD, pad=self.pad),
                  {"weight": "tok_emb.weight"})
        for number in range(self.n_layers):
            with w.block(number):
                h = w.add("ln1", LayerNorm(C=C, eps=self.norm_eps), x=x)
                o = w.add("attn.qkv", Linear(I=C, O=E * D, group="attn", std=STD), x=h)
                o = w.add("attn", GroupedAttention(H=H, K=K, D=D, E=E, P=self.max_seq_len, Z=self.rotary // 2, rope=self.rope),
                          {"cos": "rope.cos", "sin": "rope.sin"}, qkv=o)
                o = w.add("attn.out", Linear(I=C, O=C, group="attn", std=narrow), x=o)
                x = w.add("res1", Residual(C=C), x=x, branch=o)
                z = w.add("mlp.fc1", Linear(I=C, O=self.d_ff, group="mlp", std=STD), x=h)
                a = w.add("mlp.act", Activation(F=self.d_ff, kind=self.activation), x=z)
                m = w.add("mlp.fc2", Linear(I=self.d_ff, O=C, group="mlp", std=narrow), x=a)
                x = w.add("res2", Residual(C=C), x=x, branch=m)
        h = w.add("ln_f", LayerNorm(C=C, eps=self.norm_eps), x=x)
        w.add("head", CrossEntropyHead(V=self.vocab_size, C=C, std=STD, bias=True),
              {"weight": "tok_emb.weight" if self.tied else "head.weight", "bias": "head.bias"}, x=h)

    @classmethod
    def from_config(cls, config: Mapping) -> "Phi":
        hub.must_be(config, "phi", qk_layernorm=(False,))
        width, heads = hub.number(config, "hidden_size", 2048), hub.number(config, "num_attention_heads", 32)
        return cls(vocab_size=hub.number(config, "vocab_size", 51200), n_layers=hub.number(config, "num_hidden_layers", 24),
                   d_model=width, n_heads=heads, d_ff=hub.number(config, "intermediate_size", 8192),
                   max_seq_len=hub.number(config, "max_position_embeddings", 2048),
                   n_kv_heads=hub.number(config, "num_key_value_heads", heads), rope=hub.rope(config),
                   rotary=int(width // heads * hub.rotary_share(config, 0.5)),
                   norm_eps=hub.number(config, "layer_norm_eps", 1e-5),
                   activation=hub.activation(config, "hidden_act", "gelu_new", tuple(ACTIVATIONS)),
                   tied=config.get("tie_word_embeddings", False), pad=config.get("pad_token_id"))

    def to_config(self) -> dict:
        return {"model_type": "phi", "architectures": ["PhiForCausalLM"], "vocab_size": self.vocab_size,
                "num_hidden_layers": self.n_layers, "hidden_size": self.d_model, "num_attention_heads": self.n_heads,
                "num_key_value_heads": self.n_kv_heads, "intermediate_size": self.d_ff,
                "max_position_embeddings": self.max_seq_len, "layer_norm_eps": self.norm_eps, "qk_layernorm": False,
                "hidden_act": ACTIVATIONS[self.activation], "tie_word_embeddings": self.tied, "pad_token_id": self.pad,
                "rope_parameters": {**hub.rope_config(self.rope), "partial_rotary_factor": self.rotary / self.head_dim},
                "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}

    def tensors(self, names: Collection[str] | None) -> dict[str, Part]:
        q, k = self.d_model, self.n_kv_heads * self.head_dim
        columns = {"self_attn.q_proj": (0, q), "self_attn.k_proj": (q, q + k), "self_attn.v_proj": (q + k, q + 2 * k)}
        found = {"model.embed_tokens.weight": Part("tok_emb.weight")}
        for block in range(self.n_layers):
            theirs, ours = f"model.layers.{block}.", f"blocks.{block}."
            found |= {f"{theirs}input_layernorm.{kind}": Part(f"{ours}ln1.{kind}") for kind in ("weight", "bias")}
            products = [*((name, "attn.qkv", part) for name, part in columns.items()),
                        *((name, parameter, None) for name, parameter in PRODUCTS.items())]
            for name, parameter, part in products:
                found[f"{theirs}{name}.weight"] = Part(f"{ours}{parameter}.weight", part, transposed=True)
                found[f"{theirs}{name}.bias"] = Part(f"{ours}{parameter}.bias", part)
        found |= {f"model.final_layernorm.{kind}": Part(f"ln_f.{kind}") for kind in ("weight", "bias")}
        found["lm_head.bias"] = Part("head.bias")
        if not self.tied:
            found[self.head] = Part("head.weight")
        elif names is not None and self.head in names:
            found[self.head] = Part("tok_emb.weight")
        return found

    @staticmethod
    def is_buffer(name: str) -> bool:
        return bool(BUFFERS.match(name))
