"""Optimizers over a model's parameters, groups of them by name, and clipping of gradients."""

from cllm.optim.adafactor import Adafactor
from cllm.optim.adam import Adam, AdamW
from cllm.optim.adam8bit import AdamW8bit
from cllm.optim.base import Optimizer
from cllm.optim.clipping import clip_each_grad_norm, clip_grad_norm
from cllm.optim.grouped import Grouped
from cllm.optim.named import optimizer_kind, optimizer_named
from cllm.optim.sgd import SGD

__all__ = ["SGD", "Adafactor", "Adam", "AdamW", "AdamW8bit", "Grouped", "Optimizer", "clip_each_grad_norm", "clip_grad_norm",
           "optimizer_kind", "optimizer_named"]
