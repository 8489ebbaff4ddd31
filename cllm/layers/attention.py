"""Causal softmax attention over q | k | v side by side (Vaswani et al. 2017); T x T never exists unless it is asked for."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.program.declare import Layer, Scratch, Site


def _workspace(layer, letters, threads, itemsize):
    return kernels.attention_workspace(letters["B"], letters["T"], layer.H, layer.D, threads, itemsize)


@dataclass(frozen=True, slots=True)
class Attention(Layer):
    """H heads of D channels."""

    H: int
    D: int
    C: int  # H * D

    sites = (
        Site("y", "N C", "attended values", group="attn"),
        Site("lse", "B H T", "log-sum-exp of each row of scores", group="statistics"),
        Site("probs", "B H T T", "attention probabilities", group="probs", optional=True),
    )
    scratch = (Scratch("workspace", _workspace),)

    def forward(self, qkv, *, y, lse, probs, workspace):
        kernels.attention_forward(qkv, lse.shape[0], self.H, y=y, lse=lse, workspace=workspace)
        if probs is not None:
            kernels.attention_probabilities(qkv, lse, lse.shape[0], self.H, probs=probs, workspace=workspace)

    def backward(self, dy, qkv, y, lse, probs, *, dqkv, workspace):
        kernels.attention_backward(dy, qkv, y, lse, lse.shape[0], self.H, probs, dqkv=dqkv, workspace=workspace)

    def forward_flops(self, letters):
        # two products over the causal half of T x T
        return 2.0 * letters["B"] * letters["T"] * (letters["T"] + 1) * self.C

    def backward_flops(self, letters):
        return 2.5 * self.forward_flops(letters)
