"""Layers, one file each: declaration, forward, backward, in that order. `LAYERS` is the registry that the laws test."""

from cllm.layers.activation import Activation
from cllm.layers.attention import Attention
from cllm.layers.block_linear import BlockLinear
from cllm.layers.cross_entropy import CrossEntropyHead
from cllm.layers.crystalline_attention import CrystallineAttention
from cllm.layers.dropout import Dropout
from cllm.layers.embedding import Embedding
from cllm.layers.layernorm import LayerNorm
from cllm.layers.linear import Linear
from cllm.layers.residual import Residual
from cllm.layers.squared_error import SquaredErrorHead

LAYERS = (Embedding, Dropout, LayerNorm, Linear, BlockLinear, Attention, Residual, Activation, CrossEntropyHead,
          SquaredErrorHead, CrystallineAttention)
