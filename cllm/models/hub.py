"""config.json of the ecosystem: what its keys mean, in both generations, and what is refused by name.

transformers 5 writes ``rope_parameters`` and ``dtype``, 4 wrote ``rope_theta``, ``rope_scaling`` and ``torch_dtype``; both are
read.
"""

from collections.abc import Mapping

from cllm.errors import ConfigError

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
