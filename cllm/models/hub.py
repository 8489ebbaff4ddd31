"""config.json of the ecosystem: what its keys mean, in both generations, and what is refused by name.

transformers 5 writes ``rope_parameters`` and ``dtype``, 4 wrote ``rope_theta``, ``rope_scaling`` and ``torch_dtype``; both are
read.
"""

from collections.abc import Mapping
from math import log

from cllm.errors import ConfigError
from cllm.layers.rope import KINDS, Rope

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu": "relu", "tanh": "tanh",
               "silu": "silu", "swish": "silu"}

# Keys that change what a model computes and have no meaning here: any value but one of these is refused.
UNBUILT = {
    "quantization_config": (None,), "auto_map": (None,), "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False), "cross_attention_hidden_size": (None,), "text_config": (None,),
    "vision_config": (None,), "num_local_experts": (None, 0), "num_experts": (None, 0), "n_routed_experts": (None, 0),
    "use_bidirectional_attention": (None, False), "attn_output_gate": (None, False), "attention_sink": (None, False),
    "alibi": (None, False), "is_decoder": (None, True, False),
}


def refuse_unbuilt(config: Mapping, kind: str) -> None:
    """Refuse settings that are not built, by name.

    Raises
    ------
    ConfigError
    """
    for key, allowed in UNBUILT.items():
        value = config.get(key)
        if value not in allowed if not isinstance(value, (dict, list)) else True:
            raise ConfigError(f"config.json ({kind}), {key}", f"must be {' or '.join(map(str, allowed))}", str(value)[:200],
                              "This setting is not built; choose a model without it.")


def number(config: Mapping, key: str, default=None):
    """A number of the config; `default` where it is absent or null.

    Raises
    ------
    ConfigError
        When it is no number, or absent without a default.
    """
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"config.json, {key}", "must be a number", repr(value), "Download the config again.")
    return value


def activation(config: Mapping, key: str, default: str, allowed: tuple[str, ...]) -> str:
    """The activation that a key names, by its name here.

    Raises
    ------
    ConfigError
    """
    name = config.get(key) or default
    if ACTIVATIONS.get(name) not in allowed:
        known = ", ".join(n for n, ours in ACTIVATIONS.items() if ours in allowed)
        raise ConfigError(f"config.json, {key}", f"must be one of {known}", repr(name), "Choose a model with one of these.")
    return ACTIVATIONS[name]


def must_be(config: Mapping, kind: str, **wanted) -> None:
    """Refuse a config whose keys have other values than these; absent ones have the first.

    Raises
    ------
    ConfigError
    """
    for key, allowed in wanted.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ConfigError(f"config.json ({kind}), {key}", f"must be {' or '.join(map(repr, allowed))}",
                              repr(config[key]), "This setting is not built; choose a model without it.")


def rope(config: Mapping) -> Rope:
    """The rotation of a config: of ``rope_parameters``, or of ``rope_theta`` and ``rope_scaling`` as they were before.

    Raises
    ------
    ConfigError
        When its kind is not built.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in KINDS:
        raise ConfigError("config.json, rope_type", f"must be one of {', '.join(KINDS)}", repr(kind),
                          "Choose a model with one of these.")
    longest = number(config, "max_position_embeddings", 2048)
    original = config.get("original_max_position_embeddings") or given.get("original_max_position_embeddings") or longest
    names = {"factor": "factor", "low_freq_factor": "low", "high_freq_factor": "high", "beta_fast": "beta_fast",
             "beta_slow": "beta_slow", "attention_factor": "attention_factor", "truncate": "truncate"}
    settings = {ours: given[theirs] for theirs, ours in names.items() if given.get(theirs) is not None}
    if given.get("mscale") and given.get("mscale_all_dim"):
        top, bottom = (0.1 * given[n] * log(settings["factor"]) + 1 for n in ("mscale", "mscale_all_dim"))
        settings.setdefault("attention_factor", top / bottom)
    usual = 2000000.0 if config.get("model_type") == "smollm3" else 10000.0
    theta = given.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", usual)))
    return Rope(theta=float(theta), kind=kind, original=int(original) if kind in ("llama3", "yarn") else 0, **settings)


def rotary_share(config: Mapping, usual: float = 1.0) -> float:
    """The share of a head's channels that turn, by whichever of its names a config has."""
    given = config.get("rope_parameters") or {}
    for source, key in ((given, "partial_rotary_factor"), (config, "partial_rotary_factor"), (config, "rotary_pct")):
        if source.get(key) is not None:
            return number(source, key)
    return usual


def rope_config(rope: Rope) -> dict:
    """``rope_parameters`` of a rotation."""
    given = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        given["factor"] = rope.factor
    if rope.kind in ("llama3", "yarn"):
        given["original_max_position_embeddings"] = rope.original
    if rope.kind == "llama3":
        given |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
    if rope.kind == "yarn":
        given |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        if rope.attention_factor is not None:
            given["attention_factor"] = rope.attention_factor
    return given
