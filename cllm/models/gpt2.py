"""GPT-2's files: a `ModelConfig` as config.json and tensors have it (Radford et al. 2019, as transformers saves it).

GPT-2's matrices are (in, out), its c_attn has the columns q | k | v, so a tensor is a parameter as it stands.
"""

import re
from collections.abc import Collection, Mapping

from cllm.errors import ConfigError
from cllm.models import hub
from cllm.weights.parts import Part

MODEL_TYPE = "gpt2"
PREFIX = "transformer."  # that old files do without
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)\Z")  # the causal mask, kept by old files: no parameters
HEAD, EMBEDDING = "lm_head.weight", "wte.weight"
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "tanh": "tanh"}

IN_BLOCK = {"ln_1": "ln1", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out", "ln_2": "ln2", "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2"}


def settings(config: Mapping) -> dict:
    """Fields of a `ModelConfig` out of config.json; dropout is left to the caller, as all who fine-tune decide it anew.

    Raises
    ------
    ConfigError
    """
    hub.must_be(config, MODEL_TYPE, scale_attn_weights=(True,), scale_attn_by_inverse_layer_idx=(False,))
    width = hub.number(config, "n_embd", 768)
    return {"vocab_size": hub.number(config, "vocab_size", 50257), "n_layers": hub.number(config, "n_layer", 12),
            "d_model": width, "n_heads": hub.number(config, "n_head", 12), "d_ff": hub.number(config, "n_inner", 4 * width),
            "max_seq_len": hub.number(config, "n_positions", 1024), "norm_eps": hub.number(config, "layer_norm_epsilon", 1e-5),
            "activation": hub.activation(config, "activation_function", "gelu_new", tuple(ACTIVATIONS)),
            "tied": config.get("tie_word_embeddings", True)}


def config_of(c) -> dict:
    """config.json of a `ModelConfig` that GPT-2's files can hold.

    Raises
    ------
    ConfigError
        When they cannot.
    """
    for name, allowed in (("qkv", "full"), ("qkv_bias", True), ("out_proj", True), ("positions", "learned"),
                          ("attention", "softmax"), ("loss", "cross_entropy")):
        if getattr(c, name) != allowed:
            raise ConfigError(f"save_pretrained, {name}", f"must be {allowed!r}: GPT-2 has no other", repr(getattr(c, name)),
                              "Keep the model with model.save(path), which any model can.")
    return {"model_type": MODEL_TYPE, "architectures": ["GPT2LMHeadModel"], "vocab_size": c.vocab_size, "n_layer": c.n_layers,
            "n_embd": c.d_model, "n_head": c.n_heads, "n_inner": c.d_ff, "n_positions": c.max_seq_len,
            "layer_norm_epsilon": c.norm_eps, "activation_function": ACTIVATIONS[c.activation],
            "resid_pdrop": c.dropout, "embd_pdrop": c.dropout, "attn_pdrop": 0.0, "tie_word_embeddings": c.tied}


def tensors(c, names: Collection[str] | None) -> dict[str, Part]:
    """Every tensor by its name in the file, given the names that a file has; None is as transformers writes them."""
    prefix = PREFIX if names is None or any(name.startswith(PREFIX) for name in names) else ""
    found = {f"{prefix}{EMBEDDING}": Part("tok_emb.weight"), f"{prefix}wpe.weight": Part("pos_emb.weight")}
    for block in range(c.n_layers):
        for theirs, ours in IN_BLOCK.items():
            for kind in ("weight", "bias"):
                found[f"{prefix}h.{block}.{theirs}.{kind}"] = Part(f"blocks.{block}.{ours}.{kind}")
    found |= {f"{prefix}ln_f.{kind}": Part(f"ln_f.{kind}") for kind in ("weight", "bias")}
    if not c.tied:
        found[HEAD] = Part("head.weight")
    elif names is not None and HEAD in names:
        found[HEAD] = Part("tok_emb.weight")  # repeated there, and written again
    return found


def is_buffer(name: str) -> bool:
    """Whether a tensor is no parameter, and is left out."""
    return bool(BUFFERS.match(name.removeprefix(PREFIX)))
