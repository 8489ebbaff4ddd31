"""Adapters of a model: added, and merged into the weights that they are of."""

import numpy as np

from cllm import _kernels as kernels
from cllm.arrays import aligned_empty
from cllm.checks import LARGEST_SEED, checked_size
from cllm.errors import ConfigError
from cllm.layers import AdaptedLinear
from cllm.models.adapted import Adapted
from cllm.models.families import model_of
from cllm.models.model import Model

TRAINED = ("*lora*",)


def add_lora(model: Model, rank: int = 8, alpha: float = 16, targets: str | tuple[str, ...] = ("q", "v"),
             rslora: bool = False, dropout: float = 0.0, seed: int = 0) -> Model:
    """A model with low-rank adapters, of which they alone are trained (Hu et al. 2021).

    It computes what `model` does, since every B begins at zero (in bfloat16 but for y, which stays float32); A is drawn as PEFT draws it, uniform within 1 / sqrt(in). The
    base's arrays are those of `model`, not copies.

    Parameters
    ----------
    model : Model
        Its source, if it has one, is where a merged model is saved as.
    rank : int
        Rows of each A.
    alpha : float
        Adapters are scaled by alpha / rank.
    targets : str or tuple of str
        Words for linear parts: "q", "k", "v", "o", "gate", "up", "down", the name of a step such as "fc1", a module's in the
        family's files such as "q_proj" or "c_attn", a pattern of whole names ("blocks.[01].*.q"), or "all".
    rslora : bool
        Scale by alpha / sqrt(rank) (Kalajdzievski 2023).
    dropout : float
        Probability of dropping an element of what adapters read; the mask is a function of seed, step and place.
    seed : int
        Of A.

    Raises
    ------
    ConfigError
        When a value is outside what it may be, a target means no part of the model, or it has adapters already.
    """
    adapted = Adapted(checked_model("add_lora", model).architecture, rank, alpha, targets, rslora, dropout)
    return with_adapters(model, adapted, checked_size("add_lora(seed=...)", seed, 0, LARGEST_SEED))


def with_adapters(model: Model, adapted: Adapted, seed: int | None) -> Model:
    """The model with adapters begun from a seed, or at zero; it has the arrays of the base."""
    made = model_of(adapted, seed, model.dtype, TRAINED, model.parameters, model.compute)
    made.source = model.source
    return made


def merge_adapter(model: Model) -> Model:
    """The model of the base, each adapter added to its weights: W += scale A^T B. ``save_pretrained`` writes it in the dtype
    in which the base was loaded.

    Weights that have no adapter are the very arrays of `model`, which stays as it was; where these are mapped from a file, all
    are frozen.

    Raises
    ------
    ConfigError
        When it has no adapters.
    """
    architecture = adapted_of("merge_adapter", model)
    base = architecture.base
    arrays = {name: model.parameters[name] for name in base.program.parameters}
    with model.changed():
        for step in model.program.steps:
            if isinstance(step.layer, AdaptedLinear):
                name = step.params["weight"]
                arrays[name] = _merged(step.layer, *(model.parameters[step.params[n]] for n in ("weight", "lora_a", "lora_b")))
    frozen = not all(array.flags.writeable for array in arrays.values())
    made = model_of(base, None, model.dtype, () if frozen else None, arrays, model.compute)
    made.source = model.source
    return made


def adapted_of(where: str, model: Model) -> Adapted:
    """The architecture of a model that has adapters.

    Raises
    ------
    ConfigError
        When it has none.
    """
    if not isinstance(checked_model(where, model).architecture, Adapted):
        raise ConfigError(f"{where}(model)", "must have adapters", "a model without", "Add them with cllm.add_lora.")
    return model.architecture


def checked_model(where: str, model) -> Model:
    """`model` when it is one."""
    if not isinstance(model, Model):
        raise ConfigError(f"{where}(model)", "must be a cllm.Model", type(model).__name__,
                          "Make one with cllm.Model(architecture), or cllm.from_pretrained(directory).")
    return model


def _merged(layer: AdaptedLinear, weight: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A copy of the weight with what adapters add; each element one chain over the rows of A, whatever the threads."""
    merged = aligned_empty(weight.shape, weight.dtype)
    merged[...] = weight
    size = kernels.linear_workspace(layer.K, layer.I, layer.O, kernels.get_threads(), weight.itemsize)
    workspace = aligned_empty(size, weight.dtype)
    for rows, columns, at in layer.adapters():
        some = np.ascontiguousarray(merged[:, at])
        kernels.linear_backward_weight(a[rows], b[:, columns] * weight.dtype.type(layer.scale), dweight=some, dbias=None,
                                       workspace=workspace)
        merged[:, at] = some
    return merged
