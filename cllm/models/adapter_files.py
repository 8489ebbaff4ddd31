"""Adapters in PEFT's files: ``adapter_config.json`` and ``adapter_model.safetensors``.

A is (rank, in) and B is (out, rank) there for every module, also where the base's weight is (in, out). Where our adapters are
on parts of what is one module there (q and v of GPT-2's c_attn), they are one adapter of as many rows: its B has zeros where a
part is not adapted. One rank holds for all modules, so others then get rows of zeros, and alpha is such that the scale stays.
"""

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path

import numpy as np

from cllm.errors import SnapshotError
from cllm.layers import AdaptedLinear, Linear
from cllm.models.adapted import Adapted, refuse_adapted
from cllm.models.adapters import adapted_of, checked_model, with_adapters
from cllm.models.architecture import Architecture
from cllm.models.linear_parts import LinearPart, linear_parts
from cllm.models.model import Model
from cllm.models.saving import Source
from cllm.program.parts import Step
from cllm.weights.directory import ADAPTER, Write, write_adapter
from cllm.weights.dtypes import RAW, widened
from cllm.weights.header import Tensor, read_header
from cllm.weights.parts import Part

WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."
# Settings that change what an adapter means, and what they may be; "" and what is empty is nothing set.
MUST_BE = {"use_dora": (False,), "bias": ("none",), "lora_bias": (False,), "use_qalora": (False,), "use_bdlora": (None, False),
           "init_lora_weights": (True, False, "gaussian")}
MUST_BE_EMPTY = ("modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication",
                 "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "loftq_config", "eva_config",
                 "corda_config", "arrow_config", "megatron_config", "kasa_config", "lora_ga_config", "monteclora_config",
                 "velora_config")


def save_adapter(model: Model, directory: str | Path) -> Path:
    """Write a model's adapters as PEFT does, in float32, without the base.

    Returns
    -------
    Path
        The directory, made if missing.

    Raises
    ------
    ConfigError
        When the model has no adapters, or is of a family that the ecosystem's files do not hold.
    SnapshotError
        When it cannot be written.
    """
    architecture, directory = adapted_of("save_adapter", model), Path(directory)
    modules = _modules(architecture.base, model.source)
    found = {}
    for step in model.program.steps:
        if isinstance(step.layer, AdaptedLinear):
            of_step = {name: part for name, part in modules.items() if part.parameter == step.params["weight"]}
            found |= _adapters_of(step, of_step, *(model.parameters[step.params[f"lora_{which}"]] for which in "ab"))
    rank = max(len(a) for a, _ in found.values())
    scale = architecture.scale * (sqrt(rank) if architecture.rslora else rank)
    writes = []
    for module, (a, b) in found.items():
        padded = {"lora_A": np.zeros((rank, a.shape[1]), np.float32), "lora_B": np.zeros((len(b), rank), np.float32)}
        padded["lora_A"][:len(a)], padded["lora_B"][:, :b.shape[1]] = a, b
        writes += [Write(f"{PREFIX}{module}.{which}.weight", "F32", array.shape, WEIGHTS, lambda array=array: array)
                   for which, array in padded.items()]
    source = None if model.source is None else str(model.source.directory)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": source, "r": rank,
              "lora_alpha": _plain(scale), "lora_dropout": architecture.dropout, "use_rslora": architecture.rslora,
              "target_modules": _endings(found, modules), "bias": "none", "use_dora": False, "modules_to_save": None,
              "fan_in_fan_out": not all(modules[module].transposed for module in found), "rank_pattern": {},
              "alpha_pattern": {}, "layers_to_transform": None, "init_lora_weights": True, "inference_mode": True}
    write_adapter(directory, config, WEIGHTS, writes)
    return directory


def load_adapter(model: Model, directory: str | Path) -> Model:
    """The model with the adapters of a directory as PEFT saves it, of which they alone are trained.

    The base's arrays are those of `model`.

    Raises
    ------
    SnapshotError
        When files are missing, damaged, of another model, or hold what is not built, which is named: DoRA, modules saved whole,
        ranks by pattern, trained biases, other kinds than LoRA.
    ConfigError
        When the model has adapters already, or is of a family that the ecosystem's files do not hold.
    """
    directory, base = Path(directory), checked_model("load_adapter", model).architecture
    refuse_adapted("load_adapter", base)
    config = _read_config(directory)
    tensors, _ = read_header(directory / WEIGHTS)
    modules = _modules(base, model.source)
    given = _pairs(directory, tensors, base, modules, config["r"])
    every = linear_parts(base)
    parts = _parts(base, {module: modules[module] for module in given}, every)
    adapted = Adapted(base, config["r"], config["lora_alpha"], _targets(every, set(parts.values())),
                      config.get("use_rslora") or False, config.get("lora_dropout") or 0.0)
    made = with_adapters(model, adapted, None)
    for step in made.program.steps:
        if isinstance(step.layer, AdaptedLinear):
            a, b = (made.parameters[step.params[f"lora_{which}"]] for which in "ab")
            for rows, columns, at in step.layer.adapters():
                module = next(m for m, p in parts.items() if (p.step, p.start, p.stop) == (step.name, at.start, at.stop))
                theirs = [widened(t.raw(), t.code) for t in given[module]]
                a[rows] = theirs[0]
                whole = np.zeros((len(b), step.layer.O), b.dtype)
                part = modules[module]
                part.write(whole, theirs[1] if part.transposed else theirs[1].T)
                b[:, columns] = whole[:, at]
    return made


def _modules(base: Architecture, source: Source | None) -> dict[str, Part]:
    """Names of the modules of a family's files that are linear, and what each is of our parameters."""
    if source is None:
        base.to_config()  # refuses what the files cannot hold
    weights = {step.params["weight"] for step in base.program.steps if type(step.layer) is Linear}
    return {name.removesuffix(".weight"): part for name, part in base.tensors(None).items()
            if part.parameter in weights and name.endswith(".weight")}


def _columns(part: Part, width: int) -> tuple[int, int]:
    """Columns of our product that a module is; one that only orders them otherwise is all of them."""
    return part.columns if part.columns is not None and len(part.columns) == 2 else (0, width)


def _adapters_of(step: Step, modules: Mapping[str, Part], a: np.ndarray,
                 b: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of each module of a step, as the files have them: its adapters one below the other."""
    found = {}
    for module, part in modules.items():
        start, stop = _columns(part, step.layer.O)
        mine = [(rows, columns, at) for rows, columns, at in step.layer.adapters() if at.start < stop and start < at.stop]
        if mine:
            whole = np.zeros((len(mine) * len(b), step.layer.O), b.dtype)
            for number, (_, columns, at) in enumerate(mine):
                whole[number * len(b):(number + 1) * len(b), at] = b[:, columns]
            theirs = part.read(whole)
            found[module] = np.concatenate([a[rows] for rows, _, _ in mine]), theirs if part.transposed else theirs.T
    return found


def _endings(chosen: Mapping[str, object], modules: Mapping[str, Part]) -> list[str]:
    """Endings of names that mean the chosen modules and no others, as short as may be."""
    found = set()
    for module in chosen:
        words = module.split(".")
        endings = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        found.add(next(end for end in endings if all(other in chosen for other in modules if f".{other}".endswith(f".{end}"))))
    return sorted(found)


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _read_config(directory: Path) -> dict:
    """``adapter_config.json``, of an adapter that is built."""
    try:
        config = json.loads((directory / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotError(str(directory), f"must be a directory with {ADAPTER}", f"{type(error).__name__}: {error}",
                            "Give an adapter's directory, as PEFT saves it.") from error
    if not isinstance(config, dict):
        raise SnapshotError(str(directory / ADAPTER), "must be a JSON object", type(config).__name__, "Download it again.")

    def refuse(name: str, must: str) -> None:
        raise SnapshotError(f"{directory / ADAPTER}, {name}", f"must be {must}", repr(config.get(name))[:200],
                            "Merge the adapter into its model with PEFT, and load that.")

    if config.get("peft_type") != "LORA":
        refuse("peft_type", "'LORA'")
    for name, allowed in MUST_BE.items():
        if config.get(name, allowed[0]) not in allowed:
            refuse(name, " or ".join(map(repr, allowed)))
    for name in MUST_BE_EMPTY:
        if config.get(name):
            refuse(name, "left out")
    if type(config.get("r")) is not int or config["r"] < 1:
        refuse("r", "a whole number of at least 1")
    if type(config.get("lora_alpha")) not in (int, float) or not 0 < config["lora_alpha"] < float("inf"):
        refuse("lora_alpha", "a number above 0")
    return config


def _pairs(directory: Path, tensors: Mapping[str, Tensor], base: Architecture, modules: Mapping[str, Part],
           rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each module."""

    def refuse(must: str, got: str) -> None:
        raise SnapshotError(str(directory / WEIGHTS), must, got, "Check that the adapter belongs to this model.")

    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, dot, which = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if name != f"{PREFIX}{module}.{which}.weight" or which not in ("lora_A", "lora_B") or not dot:
            refuse(f"must hold tensors named {PREFIX}MODULE.lora_A.weight and lora_B.weight", name)
        if module not in modules:
            refuse("must adapt linear modules of the model", module)
        found.setdefault(module, {})[which] = tensor
    if not found:
        refuse("must hold adapters", "none")
    for module, pair in found.items():
        weight = modules[module].shape(base.program.parameters[modules[module].parameter].shape)
        out, width = weight if modules[module].transposed else weight[::-1]
        for which, shape in (("lora_A", (rank, width)), ("lora_B", (out, rank))):
            tensor = pair.get(which)
            if tensor is None or tensor.shape != shape or tensor.code not in RAW:
                refuse(f"must hold floats of shape {shape} as {PREFIX}{module}.{which}.weight",
                       "none" if tensor is None else f"{tensor.code} of shape {tensor.shape}")
    return {module: (pair["lora_A"], pair["lora_B"]) for module, pair in found.items()}


def _parts(base: Architecture, modules: Mapping[str, Part], every: list[LinearPart]) -> dict[str, LinearPart]:
    """The linear part that each module is."""
    steps = {step.params["weight"]: step for step in base.program.steps if type(step.layer) is Linear}
    places = {(part.step, (part.start, part.stop)): part for part in every}
    return {module: places[steps[part.parameter].name, tuple(_columns(part, steps[part.parameter].layer.O))]
            for module, part in modules.items()}


def _targets(every: list[LinearPart], chosen: set[LinearPart]) -> tuple[str, ...]:
    """Words that mean these parts and no others; whole names where a word would mean more."""
    too_wide = {word for word in {part.word for part in chosen} for part in every if part.matches(word) and part not in chosen}
    return tuple(dict.fromkeys(part.name if part.word in too_wide else part.word for part in every if part in chosen))
