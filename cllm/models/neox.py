"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): attention and feed-forward layer side by side.

    x = x + attention(LN1(x)) + mlp(LN2(x))         or, where `parallel` is off, one after the other
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from cllm.checks import checked_flag, checked_real, checked_size
from cllm.errors import ConfigError
from cllm.layers import Activation, CrossEntropyHead, Embedding, GroupedAttention, LayerNorm, Linear, Residual, Rope
from cllm.models import hub
from cllm.models.architecture import Architecture
from cllm.program.wiring import Wiring
from cllm.weights.parts import Part

STD = 0.02  # standard deviation of initial weights, as the family's own configs have it
ACTIVATIONS = {"gelu_erf": "gelu", "gelu": "gelu_new", "relu": "relu", "silu": "silu"}
BUFFERS = re.compile(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)\Z")
IN_BLOCK = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
PRODUCTS = {"attention.query_key_value": "attn.qkv", "attention.dense": "attn.out", "mlp.dense_h_to_4h": "mlp.fc1",
            "mlp.dense_4h_to_h": "mlp.fc2"}


@dataclass(frozen=True, slots=True)
class NeoX(Architecture):
    """Settings of a model of the family.

    Parameters
    ----------
    vocab_size, n_layers, d_model, n_heads, d_ff, max_seq_len : int
        V, number of blocks, C, H, F, and the longest T.
    rope : Rope
    rotary : int or None
        Channels of a head that turn, R; None is a quarter of them.
    norm_eps : float
    parallel, attention_bias, tied : bool
    activation : {"gelu_erf", "gelu", "relu", "silu"}

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
    rope: Rope = Rope()
    rotary: int | None = None
    norm_eps: float = 1e-5
    parallel: bool = True
    attention_bias: bool = True
    activation: str = "gelu_erf"
    tied: bool = False

    family: ClassVar[str] = "gpt_neox"
    causal: ClassVar[bool] = True
    model_types: ClassVar[tuple[str, ...]] = ("gpt_neox",)
    head: ClassVar[str] = "embed_out.weight"

    def __post_init__(self):
        for name in ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "max_seq_len"):
            object.__setattr__(self, name, checked_size(f"NeoX({name}=...)", getattr(self, name)))
        if self.d_model % self.n_heads:
            raise ConfigError("NeoX(n_heads=...)", f"must divide d_model = {self.d_model}", str(self.n_heads),
                              "Choose d_model as a multiple of n_heads.")
        rotary = self.d_model // self.n_heads // 4 if self.rotary is None else self.rotary
        object.__setattr__(self, "rotary", checked_size("NeoX(rotary=...)", rotary, 0, self.d_model // self.n_heads))
        object.__setattr__(self, "norm_eps", checked_real("NeoX(norm_eps=...)", self.norm_eps, 0.0, 1.0, "()"))
        for name in ("parallel", "attention_bias", "tied"):
            object.__setattr__(self, name, checked_flag(f"NeoX({name}=...)", getattr(self, name)))
        if isinstance(self.rope, Mapping):
            object.__setattr__(self, "rope", Rope(**self.rope))
        for name, fits, must in (("rotary", self.rotary % 2 == 0, "must be even: channels turn in pairs"),
                                 ("activation", self.activation in ACTIVATIONS, f"must be one of {', '.join(ACTIVATIONS)}")):
            if not fits:
                raise ConfigError(f"NeoX({name}=...)", must, repr(getattr(self, name)), "Choose another value.")

    def wire(self, w: Wiring) -> None:
        C, H, D = self.d_model, self.n_heads, self.d_model // self.n_heads
        narrow = STD / sqrt(2 * self.n_layers)
        x = w.add("embed", Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, kind="none", std=STD),
                  {"weight": "tok_emb.weight"})
        for number in range(self.n_layers):
            with w.block(number):
                h = w.add("ln1", LayerNorm(C=C, eps=self.norm_eps), x=x)
                h = w.add("attn.qkv", Linear(I=C, O=3 * C, bias=self.attention_bias, group="attn", std=STD), x=h)
                o = w.add("attn", GroupedAttention(H=H, K=H, D=D, E=3 * H, P=self.max_seq_len, Z=self.rotary // 2,
                                                   rope=self.rope), {"cos": "rope.cos", "sin": "rope.sin"}, qkv=h)
                o = w.add("attn.out", Linear(I=C, O=C, bias=self.attention_bias, group="attn", std=narrow), x=o)
                y = w.add("res1", Residual(C=C), x=x, branch=o)
                h = w.add("ln2", LayerNorm(C=C, eps=self.norm_eps), x=x if self.parallel else y)
                z = w.add("mlp.fc1", Linear(I=C, O=self.d_ff, group="mlp", std=STD), x=h)
                a = w.add("mlp.act", Activation(F=self.d_ff, kind=self.activation), x=z)
                m = w.add("mlp.fc2", Linear(I=self.d_ff, O=C, group="mlp", std=narrow), x=a)
                x = w.add("res2", Residual(C=C), x=y, branch=m)
        h = w.add("ln_f", LayerNorm(C=C, eps=self.norm_eps), x=x)
        w.add("head", CrossEntropyHead(V=self.vocab_size, C=C, std=STD),
              {"weight": "tok_emb.weight" if self.tied else "head.weight"}, x=h)

    @classmethod
    def from_config(cls, config: Mapping) -> "NeoX":
        width, heads = hub.number(config, "hidden_size", 6144), hub.number(config, "num_attention_heads", 64)
        share = hub.rotary_share(config, 0.25)
        return cls(vocab_size=hub.number(config, "vocab_size", 50432), n_layers=hub.number(config, "num_hidden_layers", 44),
                   d_model=width, n_heads=heads, d_ff=hub.number(config, "intermediate_size", 24576),
                   max_seq_len=hub.number(config, "max_position_embeddings", 2048), rope=hub.rope(config),
                   rotary=int(width // heads * share), norm_eps=hub.number(config, "layer_norm_eps", 1e-5),
                   parallel=config.get("use_parallel_residual", True), attention_bias=config.get("attention_bias", True),
                   activation=hub.activation(config, "hidden_act", "gelu", tuple(ACTIVATIONS)),
                   tied=config.get("tie_word_embeddings", False))

    def to_config(self) -> dict:
        rope = {**hub.rope_config(self.rope), "partial_rotary_factor": self.rotary / (self.d_model // self.n_heads)}
        return {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "vocab_size": self.vocab_size,
                "num_hidden_layers": self.n_layers, "hidden_size": self.d_model, "num_attention_heads": self.n_heads,
                "intermediate_size": self.d_ff, "max_position_embeddings": self.max_seq_len, "layer_norm_eps": self.norm_eps,
                "use_parallel_residual": self.parallel, "attention_bias": self.attention_bias,
                "hidden_act": ACTIVATIONS[self.activation], "tie_word_embeddings": self.tied, "rope_parameters": rope,
                "attention_dropout": 0.0, "hidden_dropout": 0.0}

    def tensors(self, names: Collection[str] | None) -> dict[str, Part]:
        C, H = self.d_model, self.n_heads
        D = C // H
        heads = tuple(which * C + h * D + d for h in range(H) for which in range(3) for d in range(D))  # q_h k_h v_h in turn
        found = {"gpt_neox.embed_in.weight": Part("tok_emb.weight")}
        for block in range(self.n_layers):
            theirs, ours = f"gpt_neox.layers.{block}.", f"blocks.{block}."
            for name, parameter in IN_BLOCK.items():
                found |= {f"{theirs}{name}.{kind}": Part(f"{ours}{parameter}.{kind}") for kind in ("weight", "bias")}
            for name, parameter in PRODUCTS.items():
                columns = heads if parameter == "attn.qkv" else None
                found[f"{theirs}{name}.weight"] = Part(f"{ours}{parameter}.weight", columns, transposed=True)
                if self.attention_bias or parameter.startswith("mlp"):
                    found[f"{theirs}{name}.bias"] = Part(f"{ours}{parameter}.bias", columns)
        found |= {f"gpt_neox.final_layer_norm.{kind}": Part(f"ln_f.{kind}") for kind in ("weight", "bias")}
        if not self.tied:
            found[self.head] = Part("head.weight")
        elif names is not None and self.head in names:
            found[self.head] = Part("tok_emb.weight")
        return found

    @staticmethod
    def is_buffer(name: str) -> bool:
        return bool(BUFFERS.match(name))
