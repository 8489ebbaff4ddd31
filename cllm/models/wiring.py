"""The GPT of docs/model.md as a program: pre-norm blocks, causal attention, a feed-forward layer, a head with its loss."""

from functools import lru_cache
from math import sqrt

from cllm.config import CRYSTALLINE, ModelConfig
from cllm.layers import (
    Activation,
    Attention,
    BlockLinear,
    CrossEntropyHead,
    CrystallineAttention,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    Residual,
    SquaredErrorHead,
)
from cllm.program.program import Program
from cllm.program.wiring import Wiring

STD = 0.02  # standard deviation of initial weights (Radford et al. 2019)


@lru_cache(maxsize=32)
def wire(config: ModelConfig) -> Program:
    """The program of that configuration."""
    c, letters = config, config.letters
    channels, heads, width = letters["C"], letters["H"], letters["D"]
    narrow = STD / sqrt(2 * c.n_layers)  # projections back into the residual stream
    streams = iter(range(1 + 2 * c.n_layers))  # numbers of the dropout masks
    wiring = Wiring()

    def add(name, layer, params=None, **inputs):
        return wiring.add(name, layer, letters, params, **inputs)

    x = add("embed", Embedding(V=c.vocab_size, C=channels, P=c.max_seq_len, kind=c.positions, std=STD),
            {"weight": "tok_emb.weight", "positions": "pos_emb.weight", "table": "positions"})
    stream = next(streams)
    if c.dropout:
        x = add("drop", Dropout(C=channels, rate=c.dropout, stream=stream), x=x)
    for number in range(c.n_layers):
        with wiring.block(number):
            h = add("ln1", LayerNorm(C=channels, eps=c.norm_eps), x=x)
            if c.qkv == "full":
                project = Linear(I=channels, O=3 * channels, bias=c.qkv_bias, group="attn", std=STD)
            else:
                project = BlockLinear(S=3, H=heads, D=width, O=3 * channels, bias=c.qkv_bias, group="attn", std=STD)
            qkv = add("attn.qkv", project, x=h)
            o = add("attn", _attention(c), {"coordinates": "lattice.coordinates"}, qkv=qkv)
            if c.out_proj:
                o = add("attn.out", Linear(I=channels, O=channels, group="attn", std=narrow), x=o)
            x = add("res1", Residual(C=channels, rate=c.dropout, stream=next(streams)), x=x, branch=o)
            h = add("ln2", LayerNorm(C=channels, eps=c.norm_eps), x=x)
            z = add("mlp.fc1", Linear(I=channels, O=c.d_ff, group="mlp", std=STD), x=h)
            a = add("mlp.act", Activation(F=c.d_ff, kind=c.activation), x=z)
            m = add("mlp.fc2", Linear(I=c.d_ff, O=channels, group="mlp", std=narrow), x=a)
            x = add("res2", Residual(C=channels, rate=c.dropout, stream=next(streams)), x=x, branch=m)
    h = add("ln_f", LayerNorm(C=channels, eps=c.norm_eps), x=x)
    head = CrossEntropyHead if c.loss == "cross_entropy" else SquaredErrorHead
    add("head", head(V=c.vocab_size, C=channels, std=STD),
        {"weight": "tok_emb.weight" if c.tied else "head.weight", "embedding": "tok_emb.weight"}, x=h)
    return wiring.program()


def _attention(config: ModelConfig) -> Attention | CrystallineAttention:
    letters = {letter: config.letters[letter] for letter in "HDC"}
    if config.attention == "softmax":
        return Attention(**letters)
    parts = {part: part in config.crystalline for part in CRYSTALLINE}
    return CrystallineAttention(**letters, V=config.vocab_size, **parts)
