"""The parts of a model that the documents name, beside the usual ones in their place: block-diagonal ("lattice")
projections, crystalline attention, a squared error; each by the setting that chooses it."""

from cllm.errors import ConfigError
from cllm.layers import Attention, BlockLinear, CrossEntropyHead, CrystallineAttention, Linear, SquaredErrorHead
from cllm.program.layer import Layer

CRYSTALLINE = ("rotation", "distance", "bias")  # the parts of crystalline attention

Wired = tuple[Layer, dict[str, str]]  # a layer and the shared names of its parameters


def _full(c, std: float) -> Linear:
    return Linear(I=c.d_model, O=3 * c.d_model, bias=c.qkv_bias, group="attn", std=std)


def _lattice(c, std: float) -> BlockLinear:
    width = c.d_model // c.n_heads
    return BlockLinear(S=3, H=c.n_heads, D=width, O=3 * c.d_model, bias=c.qkv_bias, group="attn", std=std)


def _softmax(c) -> Wired:
    return Attention(H=c.n_heads, D=c.d_model // c.n_heads, C=c.d_model), {}


def _crystalline(c) -> Wired:
    parts = {part: part in c.crystalline for part in CRYSTALLINE}
    layer = CrystallineAttention(H=c.n_heads, D=c.d_model // c.n_heads, C=c.d_model, V=c.vocab_size, **parts)
    return layer, {"coordinates": "lattice.coordinates"}


def _cross_entropy(c, std: float) -> Wired:
    weight = "tok_emb.weight" if c.tied else "head.weight"
    return CrossEntropyHead(V=c.vocab_size, C=c.d_model, std=std), {"weight": weight}


def _squared_error(c, std: float) -> Wired:
    weight = "tok_emb.weight" if c.tied else "head.weight"
    return SquaredErrorHead(V=c.vocab_size, C=c.d_model, std=std), {"weight": weight, "embedding": "tok_emb.weight"}


PROJECTIONS = {"full": _full, "lattice": _lattice}
ATTENTIONS = {"softmax": _softmax, "crystalline": _crystalline}
HEADS = {"cross_entropy": _cross_entropy, "mse": _squared_error}


def checked_parts(value) -> tuple[str, ...]:
    """Parts of crystalline attention in their order; otherwise `ConfigError`."""
    parts = value if isinstance(value, (tuple, list)) else (None,)
    if any(not isinstance(part, str) or part not in CRYSTALLINE for part in parts):
        raise ConfigError("ModelConfig(crystalline=...)", f"must be a tuple of parts among {', '.join(CRYSTALLINE)}",
                          repr(value), "Choose from these, or none of them.")
    return tuple(part for part in CRYSTALLINE if part in parts)
