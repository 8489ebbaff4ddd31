"""A model that is only planned: a LLaMA whose products all stand apart, so that eleven steps of a block may be dropped."""

from dataclasses import dataclass

import cllm
from cllm.layers import CrossEntropyHead, Embedding, Linear, Residual, RMSNorm


@dataclass(frozen=True, slots=True)
class Attend(cllm.Layer):
    """Causal attention of H heads of D channels, of queries, keys and values that come from three steps."""

    H: int
    D: int

    sites = (cllm.Site("y", "N HD", "attended values", group="attn"),
             cllm.Site("lse", "N H", "log-sum-exp of each row of scores", group="statistics", dtype="float64"))

    def forward(self, q, k, v, *, y, lse):
        raise NotImplementedError

    def backward(self, dy, q, k, v, y, lse, *, dq, dk, dv):
        raise NotImplementedError

    def forward_flops(self, letters):
        return 2.0 * letters["N"] * (letters["T"] + 1) * self.H * self.D

    def backward_flops(self, letters):
        return 2.5 * self.forward_flops(letters)


@dataclass(frozen=True, slots=True)
class Gate(cllm.Layer):
    """A gated activation of F columns whose halves come from two steps."""

    F: int

    sites = (cllm.Site("y", "N F", "act(gate) * up", group="act"),)

    def forward(self, gate, up, *, y):
        raise NotImplementedError

    def backward(self, dy, gate, up, *, dgate, dup):
        raise NotImplementedError


@dataclass(frozen=True)
class Separate(cllm.Architecture):
    """Settings of a LLaMA with norms of q and k. `parallel` feeds both branches from one norm and adds both at once, so that
    no single value passes inside a block."""

    vocab_size: int = 4096
    n_layers: int = 24
    d_model: int = 512
    n_heads: int = 8
    d_ff: int = 1408
    max_seq_len: int = 256
    parallel: bool = False

    def wire(self, w: cllm.Wiring) -> None:
        C, F = self.d_model, self.d_ff
        x = w.add("embed", Embedding(V=self.vocab_size, C=C, P=self.max_seq_len, kind="none"))
        for number in range(self.n_layers):
            with w.block(number):
                h = w.add("ln1", RMSNorm(C=C), x=x)
                q, k, v = (w.add(name, Linear(I=C, O=C, bias=False, group="attn"), x=h) for name in "qkv")
                q, k = w.add("q_norm", RMSNorm(C=C), x=q), w.add("k_norm", RMSNorm(C=C), x=k)
                y = w.add("attn", Attend(H=self.n_heads, D=C // self.n_heads), q=q, k=k, v=v)
                y = w.add("attn.out", Linear(I=C, O=C, bias=False), x=y)
                if not self.parallel:
                    x = w.add("res1", Residual(C=C), x=x, branch=y)
                    h = w.add("ln2", RMSNorm(C=C), x=x)
                gate, up = (w.add(name, Linear(I=C, O=F, bias=False, group="mlp"), x=h) for name in ("gate", "up"))
                m = w.add("down", Linear(I=F, O=C, bias=False), x=w.add("act", Gate(F=F), gate=gate, up=up))
                if self.parallel:
                    x = w.add("res1", Residual(C=C), x=x, branch=y)
                x = w.add("res2", Residual(C=C), x=x, branch=m)
        w.add("head", CrossEntropyHead(V=self.vocab_size, C=C), {"weight": "embed.weight"}, x=w.add("ln_f", RMSNorm(C=C), x=x))
