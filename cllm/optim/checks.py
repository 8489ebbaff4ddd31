"""Checks that come before anything is changed."""

from fnmatch import fnmatchcase

from cllm import _kernels as kernels
from cllm.errors import ConfigError, NonFiniteError, OptimizerError
from cllm.models.model import Model
from cllm.program.optimizer_states import state_bytes, state_parts
from cllm.program.trained import refuse_untrained


def checked_model(where: str, model) -> Model:
    """`model` when it is one."""
    if not isinstance(model, Model):
        raise ConfigError(f"{where}(model)", "must be a cllm.Model", type(model).__name__,
                          "Make one with cllm.Model(architecture).")
    return model


def matching(where: str, model: Model, names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of the trained parameters that one of the patterns matches, in the model's order; each must match something."""
    refuse_untrained(where, model.program)
    trained = model.program.trained
    patterns = ("*",) if names is None else (names,) if isinstance(names, str) else tuple(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in trained):
            raise OptimizerError(f"{where}(names=...)", "every pattern must match a parameter that is trained", repr(pattern),
                                 "See model.parameters for the names, and model.trainable.")
    found = tuple(n for n in trained if any(fnmatchcase(n, p) for p in patterns))
    if not found:
        raise OptimizerError(f"{where}(names=...)", "must match a parameter that is trained", repr(names),
                             "See model.parameters for the names, and model.trainable.")
    return found


def refuse_unplanned(model: Model, kind: str, names: tuple[str, ...]) -> None:
    """Refuse an optimizer whose state is larger than what the latest executor counted for these parameters."""
    planned = model.planned_optimizer
    if planned is None or planned == kind:
        return
    mine, theirs = (sum(state_bytes(state_parts(k, n), model.parameters[n].shape, model.dtype) for n in names)
                    for k in (kind, planned))
    if mine > theirs:
        raise OptimizerError(f"{kind}.step()", f"must need no more state than {planned!r}, which the executor planned",
                             f"{mine:,} bytes of state where {theirs:,} are planned",
                             f"Make the executor with optimizer={kind!r}.")


def refuse_stale(where: str, model: Model, revision: int) -> None:
    """Refuse an optimizer from before what is trained was changed: its gradients are no longer the model's."""
    if model.revision != revision:
        raise OptimizerError(where, "must be made for what the model trains now", "one from before model.trainable was set",
                             "Make the optimizer again.")


def refuse_nonfinite(where: str, names: tuple[str, ...], gradients: kernels.ArrayList) -> None:
    """Refuse gradients with NaN or infinity in them, naming the parameter that backward came to first."""
    bad = kernels.nonfinite_arrays(gradients)
    if bad:
        raise NonFiniteError(where, "gradients must be finite", f"NaN or infinity in the gradient of {names[bad[-1]]}",
                             "Call model.zero_grad() and skip the batch, or lower the learning rate.")
