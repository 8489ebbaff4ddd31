"""Optimizers by name: one word, or a line such as ``*emb.weight=adam,sgd@30``."""

from cllm.checks import shown
from cllm.errors import ConfigError
from cllm.models.model import Model
from cllm.optim.adafactor import Adafactor
from cllm.optim.adam import Adam, AdamW
from cllm.optim.adam8bit import AdamW8bit
from cllm.optim.base import Optimizer
from cllm.optim.grouped import Grouped
from cllm.optim.sgd import SGD
from cllm.program.optimizer_states import optimizer_groups

MOMENTUM = 0.9  # of "momentum"


def optimizer_named(name: str, model: Model, lr: float, betas: tuple[float, float] | None = None, eps: float = 1e-8,
                    weight_decay: float | None = None) -> Optimizer | Grouped:
    """The optimizer of that name.

    Parameters
    ----------
    name : str
        "adamw", "adam", "sgd", "momentum" (gradient descent with momentum 0.9), or the inexact "adamw8bit" and "adafactor";
        or parts ``pattern=kind`` with commas
        between: a parameter belongs to the first part whose pattern its name matches, a bare kind matches all.
        ``kind@30`` gives a part 30 times the rate. ``*emb.weight=adam,sgd@30`` is Adam for the embeddings and plain
        gradient descent for the rest.
    lr : float
    betas, weight_decay : None takes the optimizer's own default
    eps : float
        Of Adam, AdamW and AdamW8bit.

    Raises
    ------
    ConfigError, OptimizerError
    """
    parts = _parts(name)
    settings = {k: v for k, v in (("betas", betas), ("weight_decay", weight_decay)) if v is not None}
    decay = {k: v for k, v in settings.items() if k == "weight_decay"}
    makers = {
        "adamw": (AdamW, {**settings, "eps": eps}),
        "adam": (Adam, {**settings, "eps": eps}),
        "sgd": (SGD, decay),
        "momentum": (SGD, {"momentum": MOMENTUM, **decay}),
        "adamw8bit": (AdamW8bit, {**settings, "eps": eps}),
        "adafactor": (Adafactor, decay),
    }
    for _, kind, _ in parts:
        if kind not in makers:
            raise ConfigError("optimizer", f"each part must be one of {', '.join(makers)}", repr(kind),
                              "Write for example adamw, or *emb.weight=adam,sgd@30.")
    if len(parts) == 1 and parts[0][0] == "*":
        make, chosen = makers[parts[0][1]]
        return make(model, lr=lr * parts[0][2], **chosen)
    groups = {pattern: (makers[kind][0], {**makers[kind][1], "lr": lr * factor}) for pattern, kind, factor in parts}
    return Grouped(model, groups, lr=lr)


def optimizer_kind(name: str) -> str:
    """The name as `Executor` takes it, by which state is counted: without factors of the rate.

    Raises
    ------
    ConfigError
    """
    return ",".join(kind if pattern == "*" else f"{pattern}={kind}" for pattern, kind, _ in _parts(name))


def _parts(name: str) -> list[tuple[str, str, float]]:
    """Pattern, kind and factor of the rate of each part of a name."""
    if not isinstance(name, str):
        raise ConfigError("optimizer", "must be a name", shown(name), "Write for example adamw, or *emb.weight=adam,sgd@30.")
    return [(pattern, *_factor(name, kind)) for pattern, kind in optimizer_groups(name)]


def _factor(name: str, kind: str) -> tuple[str, float]:
    word, at, factor = kind.partition("@")
    try:
        return word, float(factor) if at else 1.0
    except ValueError as error:
        raise ConfigError(f"optimizer {name!r}", "needs a number after its @", repr(factor),
                          "Write for example sgd@30.") from error
