"""The model that a script measures: asked for on the command line, told to contestants as plain data."""

import argparse

PRESET = "small"
TARGETS = ("q", "v")  # of adapters


def add_options(made: argparse.ArgumentParser, preset: str | None = PRESET) -> None:
    """Options ``--model``, ``--set`` and ``--preset``; read them with `asked`."""
    from cllm.models.families import FAMILIES
    from cllm.models.gpt import PRESETS, ModelConfig

    made.add_argument("--model", default=ModelConfig.family,
                      metavar="FAMILY|DIR|FILE.gguf|FILE.py:Class|module:Class",
                      help=f"family of the model: {', '.join(FAMILIES)}; the place of one in other people's files, whose "
                           "shapes and weights are taken; or a class that derives from cllm.Architecture")
    made.add_argument("--preset", choices=sorted(PRESETS), default=preset, action=_Given,
                      help="sizes to start from, of families that derive from ModelConfig")
    made.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
                      help="change one setting of the model, by the name of its field")


def is_asked(arguments: argparse.Namespace) -> bool:
    """Whether a model was named at all, by scripts whose parser has no preset of its own."""
    from cllm.models.gpt import ModelConfig

    return arguments.model != ModelConfig.family or bool(arguments.preset or arguments.settings)


def asked(arguments: argparse.Namespace, sizes: dict | None = None) -> dict:
    """The model as plain data; a longer --seq-len raises its `max_seq_len`, and a model without time steps makes
    ``arguments.seq_len`` None.

    Parameters
    ----------
    sizes : dict or None
        The script's own settings of a GPT, where no preset was asked for.

    Returns
    -------
    dict
        ``source`` (what `architecture` finds the class by), ``family``, ``config``, ``model`` (in words).

    Raises
    ------
    ConfigError
        When there is no such model or setting.
    """
    from cllm.models.choosing import family_named, made, settings_in
    from cllm.models.gpt import ModelConfig
    from cllm.models.settings import settings_of

    kind = family_named(arguments.model)
    settings = {**settings_in(arguments.model), **settings_of(kind, arguments.settings)}
    preset = arguments.preset if getattr(arguments, "preset_given", False) else None
    if issubclass(kind, ModelConfig):
        preset = arguments.preset or "tiny"
        settings = {**({} if arguments.preset else sizes or {}), **settings}
    chosen = made(kind, settings, preset, arguments.seq_len)
    if not chosen.program.has_time:
        arguments.seq_len = None
    return told(chosen, arguments.model)


def told(architecture, source: str | None = None) -> dict:
    """An architecture as `asked` returns it; `source` is needed where its family is not built in."""
    from cllm.models.architecture import record_of

    return {"source": source or architecture.family, **record_of(architecture), "model": architecture.describe()}


def architecture(model: dict):
    """The `cllm.Architecture` that `asked` described."""
    from cllm.models.choosing import family_named
    from cllm.models.families import architecture_of

    return architecture_of(model, family_named(model["source"]))


def weighted(model: dict, dtype: str = "float32", seed: int = 0):
    """The `cllm.Model` that `asked` described: with the weights of other people's files, or with drawn ones; after `adapted`,
    its adapters beside a base that is mapped from the file."""
    import cllm
    from cllm.models.choosing import is_files, model_at, model_in

    if "lora" in model:
        return cllm.add_lora(model_at(model["base"], mapped=True), rank=model["lora"], targets=TARGETS, seed=seed)
    made = architecture(model)
    return model_in(model["source"], dtype, made) if is_files(model["source"]) else cllm.Model(made, seed=seed, dtype=dtype)


def adapted(model: dict, rank: int, base: str) -> dict:
    """The same model, of which adapters on `TARGETS` alone are trained; the file `base` is written and holds its weights."""
    weighted(model).save(base)
    return with_adapters(model, rank, base)


def with_adapters(model: dict, rank: int, base: str | None) -> dict:
    """The same over a file that is there, of `Model.save` or GGUF; None where no model is made of it."""
    about = f"{model['model']}, adapters of rank {rank} on {' and '.join(TARGETS)}"
    return {**model, "lora": rank, "base": base, "model": about}


def base_of(model: dict) -> dict:
    """The model without adapters."""
    return {name: value for name, value in model.items() if name not in ("lora", "base")}


def file_form(model: dict) -> str:
    """Where PyTorch's side gets the weights from: a ``.npz`` for its own model of the family gpt, else a directory."""
    return "weights.npz" if model["source"] == "gpt" else "weights"


def recorded(model: dict) -> dict:
    """What a result file keeps of it."""
    return {name: model[name] for name in ("family", "config", "model", "lora") if name in model}


class _Given(argparse.Action):
    """Stores a value, and that it was asked for."""

    def __call__(self, parser, namespace, value, option_string=None):
        setattr(namespace, self.dest, value)
        setattr(namespace, f"{self.dest}_given", True)
