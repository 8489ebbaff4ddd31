"""The LLaMA family (Touvron et al. 2023) and those built like it: Mistral, Qwen 2 and Qwen 3.

Pre-norm blocks of RMS norm, grouped queries turned by their position, and a gated feed-forward layer. What the four differ
in is a setting; `model_type` says whose files these are.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from cllm.checks import checked_bool, checked_real, checked_size
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
from cllm.models import hub
from cllm.models.architecture import Architecture
from cllm.program.wiring import Wiring
from cllm.weights.parts import Part

STD = 0.02  # standard deviation of initial weights, as the family's own configs have it
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
                 "qwen3": "Qwen3ForCausalLM"}
ACTIVATIONS = {"silu": "silu", "gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu", "relu": "relu"}
KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}  # where config.json does not say; elsewhere as many as query heads
SIZES = ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "max_seq_len", "n_kv_heads", "head_dim")


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
    qk_norm : bool
        RMS norm of each query and key head.
    window : int or None
        Keys that a row of a windowed block sees.
    windowed : tuple of bool
        Which blocks have the window; empty is all.
    activation : {"silu", "gelu", "gelu_erf", "relu"}
    tied : bool
        The head shares the token embedding.
    pad : int or None
        A token whose embedding no lookup trains, as transformers has it.
    model_type : {"llama", "mistral", "qwen2", "qwen3"}

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
    qk_norm: bool = False
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    activation: str = "silu"
    tied: bool = False
    pad: int | None = None
    model_type: str = "llama"

    family: ClassVar[str] = "llama"
    causal: ClassVar[bool] = True
    model_types: ClassVar[tuple[str, ...]] = tuple(ARCHITECTURES)
    head: ClassVar[str] = "lm_head.weight"

    def __post_init__(self):
        defaults = {"n_kv_heads": self.n_heads, "head_dim": self.d_model // max(1, self.n_heads)}
        for name in SIZES:
            value = getattr(self, name)
            value = defaults[name] if value is None and name in defaults else value
            object.__setattr__(self, name, checked_size(f"Llama({name}=...)", value))
        for name in ("qkv_bias", "out_bias", "mlp_bias", "qk_norm", "tied"):
            object.__setattr__(self, name, checked_bool(f"Llama({name}=...)", getattr(self, name)))
        object.__setattr__(self, "norm_eps", checked_real("Llama(norm_eps=...)", self.norm_eps, 0.0, 1.0, False))
        if isinstance(self.rope, Mapping):
            object.__setattr__(self, "rope", Rope(**self.rope))
        object.__setattr__(self, "windowed", tuple(bool(w) for w in self.windowed))
        if self.window is not None:
            object.__setattr__(self, "window", checked_size("Llama(window=...)", self.window))
        if self.pad is not None:
            object.__setattr__(self, "pad", checked_size("Llama(pad=...)", self.pad, 0, self.vocab_size - 1))
        for name, fits, must in (
                ("n_kv_heads", self.n_heads % self.n_kv_heads == 0, f"must divide n_heads = {self.n_heads}"),
                ("head_dim", self.head_dim % 2 == 0, "must be even: channels turn in pairs"),
                ("windowed", len(self.windowed) in (0, self.n_layers), f"must have {self.n_layers} places, or none"),
                ("activation", self.activation in ACTIVATIONS, f"must be one of {', '.join(ACTIVATIONS)}"),
                ("model_type", self.model_type in ARCHITECTURES, f"must be one of {', '.join(ARCHITECTURES)}")):
            if not fits:
                raise ConfigError(f"Llama({name}=...)", must, repr(getattr(self, name)), "Choose another value.")

    def wire(self, w: Wiring) -> None:
        C, H, K, D, E = self.d_model, self.n_heads, self.n_kv_heads, self.head_dim, self.n_heads + 2 * self.n_kv_heads
        narrow = STD / sqrt(2 * self.n_layers)
        tables = {name: f"rope.{name}" for name in ("cos", "sin")}
        x = w.add("embed", Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, kind="none", std=STD, pad=self.pad),
                  {"weight": "tok_emb.weight"})
        for number in range(self.n_layers):
            window = self.window if not self.windowed or self.windowed[number] else None
            with w.block(number):
                h = w.add("ln1", RMSNorm(C=C, eps=self.norm_eps), x=x)
                h = w.add("attn.qkv", Linear(I=C, O=E * D, bias=self.qkv_bias, group="attn", std=STD), x=h)
                if self.qk_norm:
                    h = w.add("attn.qk_norm", HeadNorm(H=H, K=K, D=D, E=E, eps=self.norm_eps),
                              {f"{part}_weight": f"blocks.{number}.attn.{part}_norm.weight" for part in "qk"}, qkv=h)
                o = w.add("attn", GroupedAttention(H=H, K=K, D=D, E=E, P=self.max_seq_len, Z=D // 2, rope=self.rope,
                                                   window=window), {**tables, "first": "attn.first"}, qkv=h)
                o = w.add("attn.out", Linear(I=H * D, O=C, bias=self.out_bias, group="attn", std=narrow), x=o)
                x = w.add("res1", Residual(C=C), x=x, branch=o)
                h = w.add("ln2", RMSNorm(C=C, eps=self.norm_eps), x=x)
                z = w.add("mlp.fc1", Linear(I=C, O=2 * self.d_ff, bias=self.mlp_bias, group="mlp", std=STD), x=h)
                a = w.add("mlp.act", GatedActivation(F=self.d_ff, kind=self.activation), x=z)
                m = w.add("mlp.fc2", Linear(I=self.d_ff, O=C, bias=self.mlp_bias, group="mlp", std=narrow), x=a)
                x = w.add("res2", Residual(C=C), x=x, branch=m)
        h = w.add("ln_f", RMSNorm(C=C, eps=self.norm_eps), x=x)
        w.add("head", CrossEntropyHead(V=self.vocab_size, C=C, std=STD),
              {"weight": "tok_emb.weight" if self.tied else "head.weight"}, x=h)

    # files

    @classmethod
    def from_config(cls, config: Mapping) -> "Llama":
        kind = config["model_type"]
        layers, heads = hub.number(config, "num_hidden_layers", 32), hub.number(config, "num_attention_heads", 32)
        width = hub.number(config, "hidden_size", 4096)
        has_bias = bool(config.get("attention_bias", False))
        window, windowed = _windows(config, kind, layers)
        return cls(vocab_size=hub.number(config, "vocab_size", 32000), n_layers=layers, d_model=width, n_heads=heads,
                   d_ff=hub.number(config, "intermediate_size", 11008),
                   max_seq_len=hub.number(config, "max_position_embeddings", 2048),
                   n_kv_heads=hub.number(config, "num_key_value_heads", KV_HEADS.get(kind, heads)),
                   head_dim=hub.number(config, "head_dim", 128 if kind == "qwen3" else width // heads),
                   rope=hub.rope(config), norm_eps=hub.number(config, "rms_norm_eps", 1e-6),
                   qkv_bias=kind == "qwen2" or has_bias, out_bias=kind != "qwen2" and has_bias,
                   mlp_bias=bool(config.get("mlp_bias", False)), qk_norm=kind == "qwen3", window=window, windowed=windowed,
                   activation=hub.activation(config, "hidden_act", "silu", tuple(ACTIVATIONS)),
                   tied=config.get("tie_word_embeddings", False), pad=config.get("pad_token_id"), model_type=kind)

    def to_config(self) -> dict:
        config = {"model_type": self.model_type, "architectures": [ARCHITECTURES[self.model_type]],
                  "vocab_size": self.vocab_size, "num_hidden_layers": self.n_layers, "hidden_size": self.d_model,
                  "num_attention_heads": self.n_heads, "num_key_value_heads": self.n_kv_heads, "head_dim": self.head_dim,
                  "intermediate_size": self.d_ff, "max_position_embeddings": self.max_seq_len,
                  "rms_norm_eps": self.norm_eps, "hidden_act": ACTIVATIONS[self.activation], "tie_word_embeddings": self.tied,
                  "pad_token_id": self.pad, "rope_parameters": hub.rope_config(self.rope)}
        wanted = {"qkv_bias": self.model_type == "qwen2" or self.out_bias, "qk_norm": self.model_type == "qwen3"}
        for name, must in wanted.items():
            if getattr(self, name) != must:
                raise ConfigError(f"save_pretrained, {name}", f"must be {must} in files of {self.model_type}",
                                  repr(getattr(self, name)), "Keep the model with model.save(path), which any model can.")
        if self.model_type != "qwen2":
            config["attention_bias"] = self.qkv_bias
        if self.model_type == "llama":
            config["mlp_bias"] = self.mlp_bias
        windowed = self.windowed or (self.window is not None,) * self.n_layers
        if self.model_type != "llama":
            config["sliding_window"] = self.window
        if self.model_type in ("qwen2", "qwen3"):
            config |= {"use_sliding_window": self.window is not None,
                       "layer_types": ["sliding_attention" if w else "full_attention" for w in windowed]}
        refused = self.window is not None and (self.model_type == "llama" or self.model_type == "mistral" and not all(windowed))
        if refused or self.mlp_bias and self.model_type != "llama":
            raise ConfigError("save_pretrained", f"must have settings that files of {self.model_type} can hold",
                              f"window={self.window}, mlp_bias={self.mlp_bias}", "Keep the model with model.save(path).")
        return config

    def tensors(self, names: Collection[str] | None) -> dict[str, Part]:
        q, k = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        columns = {"q": (0, q), "k": (q, q + k), "v": (q + k, q + 2 * k)}
        found = {"model.embed_tokens.weight": Part("tok_emb.weight")}
        for block in range(self.n_layers):
            theirs, ours = f"model.layers.{block}.", f"blocks.{block}."

            def linear(name: str, parameter: str, bias: bool, part=None, theirs=theirs, ours=ours):
                found[f"{theirs}{name}.weight"] = Part(f"{ours}{parameter}.weight", part, transposed=True)
                if bias:
                    found[f"{theirs}{name}.bias"] = Part(f"{ours}{parameter}.bias", part)

            found[f"{theirs}input_layernorm.weight"] = Part(f"{ours}ln1.weight")
            for which, part in columns.items():
                linear(f"self_attn.{which}_proj", "attn.qkv", self.qkv_bias, part)
            for which in "qk" if self.qk_norm else "":
                found[f"{theirs}self_attn.{which}_norm.weight"] = Part(f"{ours}attn.{which}_norm.weight")
            linear("self_attn.o_proj", "attn.out", self.out_bias)
            found[f"{theirs}post_attention_layernorm.weight"] = Part(f"{ours}ln2.weight")
            for which, part in (("gate", (0, self.d_ff)), ("up", (self.d_ff, 2 * self.d_ff))):
                linear(f"mlp.{which}_proj", "mlp.fc1", self.mlp_bias, part)
            linear("mlp.down_proj", "mlp.fc2", self.mlp_bias)
        found["model.norm.weight"] = Part("ln_f.weight")
        if not self.tied:
            found[self.head] = Part("head.weight")
        elif names is not None and self.head in names:
            found[self.head] = Part("tok_emb.weight")  # repeated there, and written again
        return found

    @staticmethod
    def is_buffer(name: str) -> bool:
        return name.endswith("rotary_emb.inv_freq")


def _windows(config: Mapping, kind: str, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """The window of a config, and the blocks that have it: ``layer_types`` decide where they are there."""
    if kind == "llama":
        return None, ()
    if kind == "mistral":
        window, windowed = config.get("sliding_window", 4096), ()
    else:
        used = config.get("use_sliding_window", False)
        window = hub.number(config, "sliding_window", 4096) if used else None
        first = hub.number(config, "max_window_layers", 28)
        windowed = tuple(block >= first for block in range(layers))
    types = config.get("layer_types")
    if types is not None and window is not None:
        windowed = tuple(name == "sliding_attention" for name in types)
    if window is None or windowed and not any(windowed):
        return None, ()
    return window, () if all(windowed) else windowed
