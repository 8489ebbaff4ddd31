"""Layers, one file each: declaration, forward, backward, in that order. `LAYERS` is the registry that the laws test."""

from cllm.layers.activation import Activation
from cllm.layers.adapted_linear import AdaptedLinear
from cllm.layers.attention import Attention
from cllm.layers.block_linear import BlockLinear
from cllm.layers.cross_entropy import CrossEntropyHead
from cllm.layers.crystalline_attention import CrystallineAttention
from cllm.layers.dropout import Dropout
from cllm.layers.embedding import Embedding
from cllm.layers.gated_activation import GatedActivation
from cllm.layers.grouped_attention import GroupedAttention
from cllm.layers.head_norm import HeadNorm
from cllm.layers.layernorm import LayerNorm
from cllm.layers.linear import Linear
from cllm.layers.residual import Residual
from cllm.layers.rmsnorm import RMSNorm
from cllm.layers.rope import Rope
from cllm.layers.squared_error import SquaredErrorHead

LAYERS = (Embedding, Dropout, LayerNorm, Linear, BlockLinear, Attention, Residual, Activation, CrossEntropyHead,
          SquaredErrorHead, CrystallineAttention, RMSNorm, HeadNorm, GatedActivation, GroupedAttention,
          AdaptedLinear)

__all__ = [*(layer.__name__ for layer in LAYERS), "LAYERS", "Rope"]
