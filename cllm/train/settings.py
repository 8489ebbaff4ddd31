"""Everything about a run but the model and the text: one frozen record that is kept in each snapshot."""

from dataclasses import dataclass, fields, replace
from math import inf

import numpy as np

from cllm.checks import LARGEST_SEED, checked_real, checked_size, checked_word, keep, shown
from cllm.errors import ConfigError
from cllm.optim.rate import SHAPES, Rate
from cllm.plans.plan import checked_states
from cllm.program.dims import COMPUTES
from cllm.program.trained import checked_patterns
from cllm.strategies.memory_budget import checked_limit
from cllm.threads.counts import checked_threads

# What may differ when a run is resumed: it changes no number, or, for `steps`, only those that are still to come.
FREE = ("steps", "strategy", "memory_budget", "states", "threads", "eval_every", "eval_batches", "snapshot_every", "keep",
        "max_bad_steps", "log_every", "stop_when_worse", "sample_every", "sample_prompt")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train.

    Parameters
    ----------
    steps : int
        Optimizer steps of the whole run.
    hours : float or None
        Instead of `steps`: as many as this machine takes in that time, found by a few that change nothing when the run
        begins, and kept from then on.
    batch_size, seq_len : int
        B and T of one call.
    accumulate : int
        Calls whose gradients are added up for one step.
    groups : int
        Of the batch of a call, see `Executor`. Bits depend on it.
    optimizer : str
        A name such as "adamw" or "*emb.weight=adam,sgd@30", see `cllm.optim.optimizer_named`.
    lr : float
        Highest rate.
    min_lr, warmup : float, int, or None
        The floor, and the steps of the rise; None is a tenth of `lr`, and a tenth of `steps` up to 100.
    rate : {"cosine", "linear", "constant"}
    betas, weight_decay : None takes the optimizer's own
    eps : float
    clip : float or None
        Gradients are scaled down to this norm.
    clip_by : {"all", "each"}
        The norm of all gradients together, or of each by itself.
    seed : int
        Of the order of the text and of dropout.
    val_fraction : float
        Share of the tokens, at the end of the text, that only validation reads; 0 for no validation.
    eval_every, eval_batches : int
        Steps between evaluations, and batches of one.
    strategy : str, strategy or Plan
        One that has no name has to be given again when the run is resumed.
    memory_budget : int, str or None
        Limit of the total bytes; it then decides instead of `strategy`. "auto" is read once, when the run begins or is
        resumed.
    states : str or None
        Where the optimizer's states are: "memory" or "disk:DIR"; None is in memory, unless a budget moves them.
    threads : int or None
    compute : {"float32", "bfloat16", "bfloat16:units"}
        What operands of products are, see `Model.compute`, which it sets. Left out, it is the model's.
    snapshot_every, keep : int
        Steps between snapshots, and how many of the last ones stay; the best one stays besides.
    max_bad_steps : int
        So many steps in a row with NaN or infinity end the run.
    log_every : int
        Steps between plain lines of progress.
    stop_when_worse : int or None
        So many evaluations in a row without a new best end the run.
    sample_every : int or None
        Steps between samples of text.
    sample_prompt : str
        What they continue.
    trainable : str, several of them, or None
        Patterns of parameters to train, as of `Model.trainable`; None is what the model says.

    Raises
    ------
    ConfigError
        When a value is outside what it may be.
    """

    steps: int = 1000
    hours: float | None = None
    batch_size: int = 8
    seq_len: int = 256
    accumulate: int = 1
    groups: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    min_lr: float | None = None
    warmup: int | None = None
    rate: str = "cosine"
    betas: tuple[float, float] | None = None
    eps: float = 1e-8
    weight_decay: float | None = None
    clip: float | None = 1.0
    clip_by: str = "all"
    seed: int = 0
    val_fraction: float = 0.1
    eval_every: int = 100
    eval_batches: int = 20
    strategy: object = "cache"
    memory_budget: int | str | None = None
    states: str | None = None
    threads: int | None = None
    compute: str = "float32"
    snapshot_every: int = 100
    keep: int = 3
    max_bad_steps: int = 10
    log_every: int = 10
    stop_when_worse: int | None = None
    sample_every: int | None = None
    sample_prompt: str = "\n"
    trainable: str | tuple[str, ...] | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "seq_len", "accumulate", "groups", "eval_every", "eval_batches", "snapshot_every",
                     "keep", "max_bad_steps", "log_every"):
            keep(self, "train", name, checked_size)
        keep(self, "train", "seed", checked_size, 0, LARGEST_SEED)
        for name in ("stop_when_worse", "sample_every"):
            if getattr(self, name) is not None:
                keep(self, "train", name, checked_size)
        if not isinstance(self.sample_prompt, str):
            raise ConfigError("train(sample_prompt=...)", "must be text", shown(self.sample_prompt), "Pass a str.")
        for name in ("lr", "clip", "hours", "eps", "weight_decay", "min_lr"):
            if getattr(self, name) is not None:
                keep(self, "train", name, checked_real, 0.0, inf, "()" if name in ("lr", "clip", "hours") else "[)")
        keep(self, "train", "val_fraction", checked_real, 0.0, 1.0)
        keep(self, "train", "rate", checked_word, SHAPES)
        keep(self, "train", "clip_by", checked_word, ("all", "each"))
        if self.states is not None:
            checked_states("train(states=...)", self.states)
        keep(self, "train", "compute", checked_word, COMPUTES)
        if self.threads is not None:
            object.__setattr__(self, "threads", checked_threads(self.threads, "train(num_threads=...)"))
        if self.memory_budget is not None:
            nbytes = checked_limit(self.memory_budget)
            object.__setattr__(self, "memory_budget",
                               str(self.memory_budget) if isinstance(self.memory_budget, str) else nbytes)
            if not isinstance(self.strategy, str) or self.strategy != "cache":
                raise ConfigError("train(strategy=..., memory_budget=...)", "must not both be given",
                                  f"{self.strategy!r} and {self.memory_budget!r}",
                                  "A budget chooses the strategy: leave that out.")
        object.__setattr__(self, "trainable", checked_patterns("train(trainable=...)", self.trainable))
        if self.betas is not None:
            object.__setattr__(self, "betas", _checked_betas(self.betas))
        for name, value in (("min_lr", self.lr / 10), ("warmup", min(100, self.steps // 10))):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        keep(self, "train", "warmup", checked_size, 0)
        self.rates()

    def rates(self) -> Rate:
        """The rate of each step."""
        return Rate(self.lr, self.steps, self.warmup, self.min_lr, self.rate)

    def whole_step(self) -> dict:
        """What an executor and a plan are told of a whole step: its groups, where states are, how it clips, and that
        gradients are kept where they are added up over several calls."""
        return {"states": self.states, "clip_by": None if self.clip is None else self.clip_by, "groups": self.groups,
                "update_in_backward": False if self.accumulate > 1 else None}

    def to_dict(self) -> dict:
        """Every setting by name, as plain data; a strategy without a name is shown as it prints."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        named = isinstance(self.strategy, str)
        return {**plain, **{name: value and list(value) for name, value in plain.items() if name in ("betas", "trainable")},
                "strategy": str(self.strategy) if named else {"unnamed": repr(self.strategy)}}

    @classmethod
    def restored(cls, kept: dict, changes: dict, where: str) -> "TrainSettings":
        """The settings of a run that goes on, from what `to_dict` gave and what is asked for now; errors as `resumed`."""
        unnamed = kept["strategy"]["unnamed"] if isinstance(kept["strategy"], dict) else None
        if unnamed is not None and changes.get("strategy") is None and changes.get("memory_budget") is None:
            raise ConfigError(where, "must be given its strategy again, which has no name", f"none; it was {unnamed}",
                              "Pass strategy=..., or a memory_budget.")
        return cls(**{**kept, **({} if unnamed is None else {"strategy": "cache"})}).resumed(changes, where)

    def resumed(self, changes: dict, where: str) -> "TrainSettings":
        """These settings, of a run that goes on, with what was asked for now.

        Raises
        ------
        ConfigError
            When a change would make other numbers than the straight run.
        """
        unknown = sorted(set(changes) - {f.name for f in fields(self)})
        asked = {n: v for n, v in changes.items() if not (v is None and n in (*FREE, "min_lr", "warmup"))}
        differ = [f"{n} {getattr(self, n)!r} there, {v!r} now" for n, v in asked.items()
                  if n not in FREE and n not in unknown and _plain(getattr(self, n)) != _plain(v)]
        if unknown or differ:
            raise ConfigError(where, "must go on with the settings it began with",
                              ", ".join([*differ, *(f"unknown {n}" for n in unknown)]),
                              "Leave these out, or start afresh in another directory.")
        chosen = {n: v for n, v in asked.items() if n in FREE}
        if "memory_budget" in chosen:
            chosen.setdefault("strategy", "cache")
        elif "strategy" in chosen:
            chosen["memory_budget"] = None
        return replace(self, **chosen)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _checked_betas(value) -> tuple[float, ...]:
    if not isinstance(value, (tuple, list, np.ndarray)) or np.shape(value) != (2,):
        raise ConfigError("train(betas=...)", "must be two numbers", shown(value), "Pass (beta1, beta2).")
    return tuple(checked_real("train(betas=...)", beta, high=1.0) for beta in value)
