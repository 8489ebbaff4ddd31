"""The files of the LLaMA family: config.json and tensors of llama, mistral, qwen2, qwen3, smollm3, phi3, olmo2 and
granite.

Their matrices are (out, in). Queries, keys and values, gate and up, are tensors of their own where ours are columns of one
parameter; Phi 3 keeps them in one as we do.
"""

from collections.abc import Collection, Mapping

from cllm.errors import ConfigError
from cllm.models import hub
from cllm.weights.parts import Part

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
                 "qwen3": "Qwen3ForCausalLM", "smollm3": "SmolLM3ForCausalLM", "phi3": "Phi3ForCausalLM",
                 "olmo2": "Olmo2ForCausalLM", "granite": "GraniteForCausalLM"}
ACTIVATIONS = {"silu": "silu", "gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu", "relu": "relu"}
KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32, "smollm3": 4}  # where config.json does not say; else as query heads
WINDOWS_BY_BLOCK = ("qwen2", "qwen3", "smollm3")
UNBOUNDED = ("llama", "olmo2", "granite")  # never a window
MLP_BIASES = ("llama", "smollm3", "granite")
MULTIPLIERS = {"embedding": "embedding_multiplier", "scores": "attention_multiplier", "branch": "residual_multiplier",
               "logits": "logits_scaling"}
QK_NORMS = {"qwen3": "head", "olmo2": "row"}
NORMS = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
NORMS_AFTER = {"post_attention_layernorm": "ln1", "post_feedforward_layernorm": "ln2"}
HEAD = "lm_head.weight"


def settings(config: Mapping) -> dict:
    """Fields of a `Llama` out of config.json.

    Raises
    ------
    ConfigError
        When a setting is not built.
    """
    kind = config["model_type"]
    layers, heads = hub.number(config, "num_hidden_layers", 36 if kind == "smollm3" else 32), hub.number(
        config, "num_attention_heads", 16 if kind == "smollm3" else 32)
    width = hub.number(config, "hidden_size", 4096)
    channels = hub.number(config, "head_dim", 128 if kind == "qwen3" else width // heads)
    has_bias = bool(config.get("attention_bias", False))
    window, windowed = _windows(config, kind, layers)
    return {"vocab_size": hub.number(config, "vocab_size", 32000), "n_layers": layers, "d_model": width, "n_heads": heads,
            "d_ff": hub.number(config, "intermediate_size", 11008),
            "max_seq_len": hub.number(config, "max_position_embeddings", 2048),
            "n_kv_heads": hub.number(config, "num_key_value_heads", KV_HEADS.get(kind, heads)), "head_dim": channels,
            "rope": hub.rope(config), "rotary": int(channels * hub.rotary_share(config)),
            "turned": _turned(config, kind, layers),
            "norm_eps": hub.number(config, "rms_norm_eps", 1e-5 if kind in ("phi3", "olmo2") else 1e-6),
            "qkv_bias": kind == "qwen2" or has_bias, "out_bias": kind != "qwen2" and has_bias,
            "mlp_bias": bool(config.get("mlp_bias", False)), "qk_norm": QK_NORMS.get(kind, "none"),
            "norm_after": kind == "olmo2", "window": window, "windowed": windowed,
            "multipliers": {ours: float(hub.number(config, theirs, 1.0)) for ours, theirs in MULTIPLIERS.items()}
            if kind == "granite" else {},
            "activation": hub.activation(config, "hidden_act", "silu", tuple(ACTIVATIONS)),
            "tied": config.get("tie_word_embeddings", kind == "smollm3"), "pad": config.get("pad_token_id"),
            "model_type": kind}


def config_of(c) -> dict:
    """config.json of a `Llama`.

    Raises
    ------
    ConfigError
        When files of its `model_type` cannot hold a setting.
    """
    kind = c.model_type
    held = {"qkv_bias": (kind == "qwen2" or c.out_bias,), "out_bias": (False,) if kind in ("qwen2", "phi3") else (True, False),
            "qk_norm": (QK_NORMS.get(kind, "none"),), "norm_after": (kind == "olmo2",),
            "mlp_bias": (True, False) if kind in MLP_BIASES else (False,),
            "multipliers": (c.multipliers,) if kind == "granite" else (type(c.multipliers)(),),
            "window": (None,) if kind in UNBOUNDED else (c.window,),
            "windowed": (c.windowed,) if kind in WINDOWS_BY_BLOCK else ((), (True,) * c.n_layers),
            "turned": (c.turned,) if kind == "smollm3" else ((), (True,) * c.n_layers),
            "rotary": (c.rotary,) if kind == "phi3" else (c.head_dim,)}
    for name, allowed in held.items():
        if getattr(c, name) not in allowed:
            raise ConfigError(f"save_pretrained, {name}", f"must be {' or '.join(map(str, allowed))} in files of {kind}",
                              repr(getattr(c, name)), "Keep the model with model.save(path), which any model can.")
    config = {"model_type": kind, "architectures": [ARCHITECTURES[kind]], "vocab_size": c.vocab_size,
              "num_hidden_layers": c.n_layers, "hidden_size": c.d_model, "num_attention_heads": c.n_heads,
              "num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "intermediate_size": c.d_ff,
              "max_position_embeddings": c.max_seq_len, "rms_norm_eps": c.norm_eps, "hidden_act": ACTIVATIONS[c.activation],
              "tie_word_embeddings": c.tied, "pad_token_id": c.pad, "rope_parameters": hub.rope_config(c.rope)}
    if kind not in ("qwen2", "phi3"):
        config["attention_bias"] = c.qkv_bias
    if kind in MLP_BIASES:
        config["mlp_bias"] = c.mlp_bias
    if kind == "granite":
        config |= {theirs: getattr(c.multipliers, ours) for ours, theirs in MULTIPLIERS.items()}
        config["attention_multiplier"] = c.head_dim ** -0.5 if c.multipliers.scores is None else c.multipliers.scores
    if kind not in UNBOUNDED:
        config["sliding_window"] = c.window
    if kind in WINDOWS_BY_BLOCK:
        windowed = c.windowed or (c.window is not None,) * c.n_layers
        config |= {"use_sliding_window": c.window is not None,
                   "layer_types": ["sliding_attention" if w else "full_attention" for w in windowed]}
    if kind == "smollm3":
        config["no_rope_layers"] = [int(t) for t in c.turned or (True,) * c.n_layers]
    if kind == "phi3":
        config["rope_parameters"]["partial_rotary_factor"] = c.rotary / c.head_dim
    return config


def tensors(c, names: Collection[str] | None) -> dict[str, Part]:
    """Every tensor by its name in the file, given the names that a file has; None is as transformers writes them."""
    return tensors_of(c, names, NORMS_AFTER if c.norm_after else NORMS, c.qkv_bias, c.out_bias, c.mlp_bias,
                      c.qk_norm != "none", fused=c.model_type == "phi3")


def tensors_of(c, names: Collection[str] | None, norms: Mapping[str, str], qkv_bias: bool, out_bias: bool, mlp_bias: bool,
               qk_norm: bool, fused: bool = False) -> dict[str, Part]:
    """`tensors` of any family whose files are named so: what a block has beside its products.

    Parameters
    ----------
    norms : dict of str by str
        Names of a block's norms, theirs and ours.
    qkv_bias, out_bias, mlp_bias, qk_norm : bool
    fused : bool
        q, k, v and gate, up are one tensor each.
    """
    q, k = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    if fused:
        qkv, gates = {"self_attn.qkv_proj": None}, {"mlp.gate_up_proj": None}
    else:
        qkv = {"self_attn.q_proj": (0, q), "self_attn.k_proj": (q, q + k), "self_attn.v_proj": (q + k, q + 2 * k)}
        gates = {"mlp.gate_proj": (0, c.d_ff), "mlp.up_proj": (c.d_ff, 2 * c.d_ff)}
    found = {"model.embed_tokens.weight": Part("tok_emb.weight")}
    for block in range(c.n_layers):
        theirs, ours = f"model.layers.{block}.", f"blocks.{block}."
        for name, parameter in norms.items():
            found[f"{theirs}{name}.weight"] = Part(f"{ours}{parameter}.weight")
        for parameter, bias, parts in (("attn.qkv", qkv_bias, qkv), ("attn.out", out_bias, {"self_attn.o_proj": None}),
                                       ("mlp.fc1", mlp_bias, gates), ("mlp.fc2", mlp_bias, {"mlp.down_proj": None})):
            for name, columns in parts.items():
                found[f"{theirs}{name}.weight"] = Part(f"{ours}{parameter}.weight", columns, transposed=True)
                if bias:
                    found[f"{theirs}{name}.bias"] = Part(f"{ours}{parameter}.bias", columns)
        for which in "qk" if qk_norm else "":
            found[f"{theirs}self_attn.{which}_norm.weight"] = Part(f"{ours}attn.{which}_norm.weight")
    found["model.norm.weight"] = Part("ln_f.weight")
    if not c.tied:
        found[HEAD] = Part("head.weight")
    elif names is not None and HEAD in names:
        found[HEAD] = Part("tok_emb.weight")  # repeated there, and written again
    return found


def is_buffer(name: str) -> bool:
    """Whether a tensor is no parameter, and is left out: frequencies that old files keep."""
    return name.endswith("rotary_emb.inv_freq")


def _windows(config: Mapping, kind: str, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """The window of a config, and the blocks that have it: ``layer_types`` decide where they are there."""
    if kind in UNBOUNDED:
        return None, ()
    windowed = ()
    if kind in WINDOWS_BY_BLOCK:
        window = hub.number(config, "sliding_window", 4096) if config.get("use_sliding_window", False) else None
        first = hub.number(config, "max_window_layers", 28)
        windowed = tuple(block >= first for block in range(layers))
    else:
        window = config.get("sliding_window", 4096 if kind == "mistral" else None)
    types = config.get("layer_types")
    if types is not None and window is not None:
        windowed = tuple(name == "sliding_attention" for name in types)
    if window is None or windowed and not any(windowed):
        return None, ()
    return window, () if all(windowed) else windowed


def _turned(config: Mapping, kind: str, layers: int) -> tuple[bool, ...]:
    """The blocks whose queries and keys turn: SmolLM 3 leaves out every fourth."""
    if kind != "smollm3":
        return ()
    given = config.get("no_rope_layers")  # 1 where they do turn
    every = hub.number(config, "no_rope_layer_interval", 4)
    turned = tuple(bool(n) for n in given) if given else tuple((block + 1) % every != 0 for block in range(layers))
    return () if all(turned) else turned
