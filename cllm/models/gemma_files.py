"""The files of Gemma 2 and 3: config.json and tensors of gemma2 and gemma3_text.

A norm's tensor holds w of 1 + w, and so does our parameter: what is saved is what was there.
"""

from collections.abc import Collection, Mapping

from cllm.errors import ConfigError
from cllm.models import hub, llama_files
from cllm.models.llama_files import ACTIVATIONS, HEAD, is_buffer
from cllm.weights.parts import Part

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "HEAD", "config_of", "is_buffer", "settings", "tensors"]

ARCHITECTURES = {"gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}
NORMS = {"input_layernorm": "ln1", "post_attention_layernorm": "ln1_after", "pre_feedforward_layernorm": "ln2",
         "post_feedforward_layernorm": "ln2_after"}
FULL, LOCAL = "full_attention", "sliding_attention"
CAPS = {"attn_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}


def settings(config: Mapping) -> dict:
    """Fields of a `Gemma` out of config.json.

    Raises
    ------
    ConfigError
        When a setting is not built.
    """
    third = config["model_type"] == "gemma3_text"
    layers = hub.number(config, "num_hidden_layers", 26)
    caps = {ours: config.get(theirs, None if third else usual)
            for (ours, theirs), usual in zip(CAPS.items(), (50.0, 30.0), strict=True)}
    rope, local = _rotations(config, third)
    return {"vocab_size": hub.number(config, "vocab_size", 262208 if third else 256000), "n_layers": layers,
            "d_model": hub.number(config, "hidden_size", 2304), "n_heads": hub.number(config, "num_attention_heads", 8),
            "d_ff": hub.number(config, "intermediate_size", 9216),
            "max_seq_len": hub.number(config, "max_position_embeddings", 131072 if third else 8192),
            "n_kv_heads": hub.number(config, "num_key_value_heads", 4), "head_dim": hub.number(config, "head_dim", 256),
            "window": hub.number(config, "sliding_window", 4096), "windowed": _windowed(config, third, layers),
            "rope": rope, "local_rope": local, **caps,
            "query_scalar": hub.number(config, "query_pre_attn_scalar", 256),
            "qk_norm": third, "attention_bias": config.get("attention_bias", False),
            "norm_eps": hub.number(config, "rms_norm_eps", 1e-6),
            "activation": hub.activation(config, "hidden_activation", "gelu_pytorch_tanh", tuple(ACTIVATIONS)),
            "tied": config.get("tie_word_embeddings", True), "pad": config.get("pad_token_id", 0),
            "model_type": config["model_type"]}


def config_of(c) -> dict:
    """config.json of a `Gemma`.

    Raises
    ------
    ConfigError
        When files of its `model_type` cannot hold a setting.
    """
    third = c.model_type == "gemma3_text"
    for name, must in (("qk_norm", third), ("local_rope", c.local_rope if third else None)):
        if getattr(c, name) != must:
            raise ConfigError(f"save_pretrained, {name}", f"must be {must} in files of {c.model_type}",
                              repr(getattr(c, name)), "Keep the model with model.save(path), which any model can.")
    rope = hub.rope_config(c.rope)
    return {"model_type": c.model_type, "architectures": [ARCHITECTURES[c.model_type]], "vocab_size": c.vocab_size,
            "num_hidden_layers": c.n_layers, "hidden_size": c.d_model, "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "intermediate_size": c.d_ff,
            "max_position_embeddings": c.max_seq_len, "rms_norm_eps": c.norm_eps,
            "hidden_activation": ACTIVATIONS[c.activation], "attention_bias": c.attention_bias, "sliding_window": c.window,
            "layer_types": [LOCAL if local else FULL for local in c.windowed or (True,) * c.n_layers],
            "query_pre_attn_scalar": c.head_dim if c.query_scalar is None else c.query_scalar,
            **{theirs: getattr(c, ours) for ours, theirs in CAPS.items()},
            "rope_parameters": {FULL: rope, LOCAL: hub.rope_config(c.local_rope or c.rope)} if third else rope,
            "tie_word_embeddings": c.tied, "pad_token_id": c.pad}


def tensors(c, names: Collection[str] | None) -> dict[str, Part]:
    """Every tensor by its name in the file, given the names that a file has; None is as transformers writes them."""
    return llama_files.tensors_of(c, names, NORMS, qkv_bias=c.attention_bias, out_bias=c.attention_bias, mlp_bias=False,
                                  qk_norm=c.qk_norm)


def _rotations(config: Mapping, third: bool):
    """The rotation of blocks that see all, and that of windowed ones where it is another."""
    if not third:
        return hub.rope(config), None
    given = config.get("rope_parameters") or {}
    if FULL in given:
        return tuple(hub.rope({**config, "rope_parameters": given[kind]}) for kind in (FULL, LOCAL))
    theta = hub.number(config, "rope_local_base_freq", 10000.0)
    return (hub.rope({**config, "rope_theta": hub.number(config, "rope_theta", 1000000.0)}),
            hub.rope({**config, "rope_theta": theta, "rope_scaling": None, "rope_parameters": None}))


def _windowed(config: Mapping, third: bool, layers: int) -> tuple[bool, ...]:
    """The blocks that have the window: every other one, or five of six, where ``layer_types`` do not say."""
    types = config.get("layer_types")
    if types is not None:
        return tuple(kind == LOCAL for kind in types)
    every = hub.number(config, "sliding_window_pattern", config.get("_sliding_window_pattern", 6)) if third else 2
    return tuple((block + 1) % every != 0 for block in range(layers))
