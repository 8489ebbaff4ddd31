"""From a GGUF file to a model: `from_gguf`, for the architectures llama (Mistral's too), qwen2 and qwen3.

Their settings become a config.json's, their tensors get the names that transformers gives them. llama's queries and keys are
stored for a rotation of neighbouring channels; their rows are put back into the two halves of a head.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cllm.errors import ConfigError, SnapshotError
from cllm.models import llama_files
from cllm.models.architecture import Architecture
from cllm.models.as_they_lie import as_they_lie
from cllm.models.families import model_of
from cllm.models.llama import Llama
from cllm.models.model import Model
from cllm.models.parameters import forms_in
from cllm.models.saving import Source
from cllm.program.parts import StoredForm
from cllm.program.trained import Patterns, with_trained
from cllm.weights.gguf import GGUF, Block, read_gguf
from cllm.weights.parts import Part

ENDING = ".gguf"
PERMUTED = ("llama",)  # whose q and k rows are in the other order
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_BLOCK = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Keys, after the architecture's name, that change what a model computes and have no meaning here unless they are so.
UNBUILT = {"expert_count": 0, "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0, "logit_scale": 1.0,
           "attention.causal": True, "use_parallel_residual": False}
MOST_NAMES = 8  # listed in an error


def read_gguf_architecture(path: str | Path, **changes) -> tuple[Architecture, dict, GGUF]:
    """What a file's model is, its settings as a config.json has them, and the file; no tensor is read.

    Raises
    ------
    ConfigError, SnapshotError
        As `from_gguf`.
    """
    file = read_gguf(path)
    config = config_of(file)
    return replace(Llama.from_config(config), **changes), config, file


def from_gguf(path: str | Path, dtype: str = "float32", trainable: Patterns = None, mapped: bool = False,
              compute: str = "float32", **changes: Any) -> Model:
    """The model of a GGUF file; quantised weights are expanded, unless they are mapped.

    Parameters
    ----------
    path : str or Path
    dtype : {"float32", "float64"}
    trainable : str, several of them, or None
        As of `Model`.
    mapped : bool
        As of `from_pretrained`; in float32 quantised matrices that are frozen stay in their blocks.
    compute : {"float32", "bfloat16", "bfloat16:units"}
        As of `Model`.
    **changes
        Settings of the family in place of the file's.

    Returns
    -------
    Model
        ``model.save_pretrained(directory)`` writes a directory that transformers reads, tokenizer and template among it.

    Raises
    ------
    ConfigError
        When the architecture, or a setting of it, is not built, or the library gguf is not installed.
    SnapshotError
        When the file is missing or damaged, or holds other tensors than its settings say.
    """
    architecture, config, file = read_gguf_architecture(path, **changes)
    parts, found, orders = _tensors(file, architecture)
    trainable = () if mapped and trainable is None else trainable
    arrays = as_they_lie(parts, found, with_trained(architecture.program, trainable), dtype, orders) if mapped else {}
    model = model_of(architecture, None, dtype, trainable, arrays, compute)
    for name, part in parts.items():
        if part.parameter in arrays:
            continue
        parameter, tensor = model.parameters[part.parameter], found[name]
        if tensor.shape != part.shape(parameter.shape):
            raise SnapshotError(f"{path}, {name}", f"must be of shape {part.shape(parameter.shape)}", str(tensor.shape),
                                "Convert the model again.")
        values = tensor.values()
        part.write(parameter, values[orders[name]] if name in orders else values)
    model.source = Source(Path(path), config, {})
    return model


def forms_in_gguf(path: str | Path, architecture: Architecture, trainable: Patterns) -> dict[str, StoredForm]:
    """How the frozen matrices of a file are stored where it is mapped; no tensor is read, errors as `from_gguf`."""
    parts, found, orders = _tensors(read_gguf(path), architecture)
    return forms_in(as_they_lie(parts, found, with_trained(architecture.program, trainable), "float32", orders))


def _tensors(file: GGUF, architecture: Architecture) -> tuple[dict[str, Part], dict[str, Block], dict[str, np.ndarray]]:
    """By transformers' name which part of which parameter each tensor is, the tensor, and the order of its rows where that is
    another; a file that holds others, or not all, is refused."""
    parts = architecture.tensors(None)
    found = {_theirs(name): tensor for name, tensor in file.tensors.items()}
    for names, what in ((sorted(set(parts) - set(found)), "hold every parameter"),
                        (sorted(set(found) - set(parts)), "hold no unknown tensors")):
        if names:
            raise SnapshotError(str(file.path), f"must {what}", ", ".join(names[:MOST_NAMES]), "Convert the model again.")
    orders = {}
    for name, part in parts.items() if file["general.architecture"] in PERMUTED else ():
        heads = {"q_proj": architecture.n_heads, "k_proj": architecture.n_kv_heads}.get(name.split(".")[-2])
        if heads is not None:
            orders[name] = halves(np.arange(part.shape(architecture.program.parameters[part.parameter].shape)[0]), heads)
    return parts, found, orders


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k, neighbours that turn together parted into the two halves of their head."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def config_of(file: GGUF) -> dict:
    """config.json of a file's settings.

    Raises
    ------
    ConfigError
    SnapshotError
    """
    name = file["general.architecture"]
    if name not in ARCHITECTURES:
        raise ConfigError(f"{file.path}, general.architecture", f"must be one of {', '.join(ARCHITECTURES)}", repr(name),
                          "Choose a model of one of these.")
    given = {key.removeprefix(f"{name}."): value for key, value in file.settings.items() if key.startswith(f"{name}.")}
    for key, must in UNBUILT.items():
        if given.get(key, must) != must:
            raise ConfigError(f"{file.path}, {name}.{key}", f"must be {must}", str(given[key]),
                              "This setting is not built; choose a model without it.")
    scaling = given.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear") or "rope_freqs.weight" in file.tensors:
        raise ConfigError(f"{file.path}, rotation", "must be plain or scaled linearly",
                          f"{name}.rope.scaling.type {scaling}" if scaling != "none" else "the tensor rope_freqs.weight",
                          "Take the model's directory with config.json and safetensors.")
    heads, width = file[f"{name}.attention.head_count"], file[f"{name}.embedding_length"]
    kind = "mistral" if "attention.sliding_window" in given and name == "llama" else name
    config = {
        "model_type": kind, "architectures": [llama_files.ARCHITECTURES[kind]],
        "vocab_size": file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        "num_hidden_layers": file[f"{name}.block_count"], "hidden_size": width, "num_attention_heads": heads,
        "num_key_value_heads": given.get("attention.head_count_kv", heads),
        "head_dim": given.get("attention.key_length", width // heads),
        "intermediate_size": file[f"{name}.feed_forward_length"],
        "max_position_embeddings": file[f"{name}.context_length"],
        "rms_norm_eps": shortest(file[f"{name}.attention.layer_norm_rms_epsilon"]), "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": {"rope_type": "default", "rope_theta": shortest(given.get("rope.freq_base", 10000.0))}}
    if scaling == "linear":
        config["rope_parameters"] |= {"rope_type": "linear", "factor": shortest(file[f"{name}.rope.scaling.factor"])}
    if given.get("rope.dimension_count", config["head_dim"]) != config["head_dim"]:
        raise ConfigError(f"{file.path}, {name}.rope.dimension_count", f"must be {config['head_dim']}, all channels of a head",
                          str(given["rope.dimension_count"]), "This setting is not built; choose a model without it.")
    if "attention.sliding_window" in given:
        config["sliding_window"] = given["attention.sliding_window"]
    if name != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos")):
        if f"tokenizer.ggml.{theirs}_token_id" in file.settings:
            config[ours] = file.settings[f"tokenizer.ggml.{theirs}_token_id"]
    return config


def shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-5 is kept there as 9.999999747e-06."""
    return float(str(np.float32(value)))


def _theirs(name: str) -> str:
    """The name of a tensor in transformers' files; one that is not known keeps its own."""
    stem, _, kind = name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in IN_BLOCK:
        return f"model.layers.{block[1]}.{IN_BLOCK[block[2]]}.{kind}"
    return f"{NAMES[stem]}.{kind}" if stem in NAMES else name
