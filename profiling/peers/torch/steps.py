"""The contestant PyTorch: the same model, trained step by step the way PyTorch's users do it.

The model is the one of cllm's documentation written with PyTorch's own fast paths: fused qkv product, scaled dot
product attention, fused AdamW; or, of other families, transformers' own. It takes cllm's weights, so that equal losses show
that both train the same model.
Modes:

    eager         plain
    checkpoint    activation checkpointing, one block at a time
    autocast      eager, operations that allow it in bfloat16
    micro:K       eager, by hand in micro-batches of K sequences
    compile       torch.compile
    compile:R     torch.compile with an activation memory budget of R, between 0 and 1

Needs PyTorch and NumPy, not cllm.
"""

from pathlib import Path

import harness

from peers import process
from peers.torch.pretrained import loaded

MAX_NORM = 1.0


def build(config: dict):
    """The model as a `torch.nn.Module` whose parameters carry cllm's names, and the map of shapes between the two."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    if config["qkv"] != "full" or config["positions"] != "learned" or config["attention"] != "softmax":
        raise ValueError("the PyTorch model has full qkv, learned positions and softmax attention only")
    if config["dropout"] or config["loss"] != "cross_entropy":
        raise ValueError("the PyTorch model has no dropout and the cross-entropy loss only")
    channels, heads, hidden = config["d_model"], config["n_heads"], config["d_ff"]
    activation = {"gelu": lambda z: F.gelu(z, approximate="tanh"), "relu": F.relu, "tanh": torch.tanh}
    act = activation[config["activation"]]

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(channels, 3 * channels, bias=config["qkv_bias"])
            self.out = nn.Linear(channels, channels) if config["out_proj"] else None

        def forward(self, h):
            rows, time, _ = h.shape
            q, k, v = (part.view(rows, time, heads, -1).transpose(1, 2) for part in self.qkv(h).split(channels, dim=2))
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            o = o.transpose(1, 2).reshape(rows, time, channels)
            return o if self.out is None else self.out(o)

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

        def forward(self, h):
            return self.fc2(act(self.fc1(h)))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.attn = nn.LayerNorm(channels, config["norm_eps"]), Attention()
            self.ln2, self.mlp = nn.LayerNorm(channels, config["norm_eps"]), FeedForward()

        def forward(self, x):
            x = x + self.attn(self.ln1(x))
            return x + self.mlp(self.ln2(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok_emb = nn.Embedding(config["vocab_size"], channels)
            self.pos_emb = nn.Embedding(config["max_seq_len"], channels)
            self.blocks = nn.ModuleList(Block() for _ in range(config["n_layers"]))
            self.ln_f = nn.LayerNorm(channels, config["norm_eps"])
            self.head = nn.Linear(channels, config["vocab_size"], bias=False)
            if config["tied"]:
                self.head.weight = self.tok_emb.weight
            self.checkpointed = False

        def forward(self, tokens, targets, divisor):
            x = self.tok_emb(tokens) + self.pos_emb.weight[:tokens.shape[1]]
            for block in self.blocks:
                x = (torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if self.checkpointed
                     else block(x))
            logits = self.head(self.ln_f(x))
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum") / divisor

    return Model()


def model_of(config: dict, weights: str):
    """The model with the weights that cllm wrote: parameters by its own names, or a directory of other people's form."""
    import numpy as np
    import torch

    if Path(weights).is_dir():
        return loaded(weights)
    model = build(config)
    with np.load(weights) as saved, torch.no_grad():
        for name, parameter in model.named_parameters():
            array = torch.from_numpy(saved[name])
            # nn.Linear keeps (out, in); cllm keeps (in, out), but for the head.
            turned = parameter.ndim == 2 and name.startswith("blocks.")
            parameter.copy_(array.T if turned else array)
    return model


class Training:
    """One model and optimizer in one mode, made by `make` and then stepped."""

    def make(self, config: dict, mode: str, threads: int, weights: str, data: str, clips: bool = True) -> dict:
        """Build everything and take the first step (which compiles, in those modes).

        Parameters
        ----------
        weights : str
            A ``.npz`` of cllm's parameters by name, or a directory that transformers reads.
        data : str
            A ``.npz`` with ``tokens`` and ``targets``, arrays of shape B T.
        clips : bool
            Whether gradients are clipped by the norm of all.
        """
        import numpy as np
        import torch
        import torch.utils.checkpoint

        torch.set_num_threads(threads)
        kind, _, value = mode.partition(":")
        with np.load(data) as saved:
            self.tokens, self.targets = (torch.from_numpy(saved[name].astype(np.int64)) for name in
                                         ("tokens", "targets"))
        self.rows = int(value) if kind == "micro" else len(self.tokens)
        self.narrow = kind == "autocast"
        self.model = model_of(config, weights)
        self.model.checkpointed = kind == "checkpoint"
        self.forward = self.model
        if kind == "compile":
            if value:
                import torch._functorch.config

                torch._functorch.config.activation_memory_budget = float(value)
            self.forward = torch.compile(self.model)
        elif kind not in ("eager", "checkpoint", "micro", "autocast"):
            raise ValueError(f"unknown mode {mode!r}")
        trained = [p for p in self.model.parameters() if p.requires_grad]
        decayed, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        self.optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1},
                                            {"params": others, "weight_decay": 0.0}],
                                           lr=3e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self.clip = torch.nn.utils.clip_grad_norm_ if clips else lambda parameters, norm: None
        resident = _resident()
        steps = 1 if len(trained) == len(list(self.model.parameters())) else 2  # adapters begin with what the base's loss is
        return {"rss_model_bytes": resident, "loss": [self.step() for _ in range(steps)][-1], "torch": torch.__version__}

    def step(self) -> float:
        """One whole step: zero, loss and gradients by micro-batches, clip, AdamW."""
        import torch

        self.optimizer.zero_grad()
        total = 0.0
        for start in range(0, len(self.tokens), self.rows):
            cut = slice(start, start + self.rows)
            with torch.autocast("cpu", torch.bfloat16, self.narrow):
                loss = self.forward(self.tokens[cut], self.targets[cut], self.targets.numel())
            loss.backward()
            total += loss.item()
        self.clip(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        return total

    def burst(self, repeats: int) -> list[float]:
        """Seconds of each of `repeats` steps."""
        return harness.burst(self.step, repeats)


def _resident() -> int | None:
    # This environment need not have cllm: the same reader, by its file.
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("resident", process.ROOT / "cllm" / "comparison" / "resident.py")
    resident = module_from_spec(spec)
    spec.loader.exec_module(resident)
    return resident.resident_bytes()


if __name__ == "__main__":
    training = Training()
    process.serve(make=training.make, burst=training.burst)
