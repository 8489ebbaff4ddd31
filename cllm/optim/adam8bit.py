"""AdamW with a byte for each element of m and of v."""

from cllm import _kernels as kernels
from cllm.errors import ConfigError
from cllm.models.model import Model
from cllm.optim.adam import AdamW


class AdamW8bit(AdamW):
    """AdamW whose m and v are kept in a byte an element: block-wise dynamic quantisation (Dettmers et al. 2022).

    **Inexact**: its weights are not AdamW's. Between two steps an element of m or v is the nearest of 256 numbers, times the
    greatest magnitude among the 2048 elements of its block; a v that is not zero is never rounded to zero. Bits are still the
    same in every run, with any threads and under every plan.

    Parameters are those of `AdamW`; models are float32. For embeddings the paper keeps 32 bits: ``*emb.weight=adamw,adamw8bit``
    by `optimizer_named`, or `Grouped`.

    Attributes
    ----------
    state : Mapping
        ``name -> (m_scale, v_scale, m, v)``: a scale for each 2048 elements, and bytes of the parameter's shape.
    """

    def __init__(self, model: Model, lr: float = 3e-4, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 weight_decay: float = 0.1, names: str | tuple[str, ...] | None = None):
        super().__init__(model, lr, betas, eps, weight_decay, names)
        if model.dtype != "float32":
            raise ConfigError("AdamW8bit(model)", "must be a model of float32", model.dtype, "Use AdamW.")

    @property
    def kind(self) -> str:
        return "adamw8bit"

    def _update(self, names, grads, params, state, weight_decay):
        m_scales, v_scales, m, v = state
        kernels.adamw8bit_update(grads, self.lr, *self.betas, self.eps, weight_decay, self.steps, params=params, m=m,
                                 m_scales=m_scales, v=v, v_scales=v_scales)
