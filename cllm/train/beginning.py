"""What a run begins with, afresh or from a snapshot; all that can be refused is refused here."""

from dataclasses import dataclass, field

import numpy as np

from cllm import corpus
from cllm.errors import ConfigError
from cllm.models.model import Model
from cllm.optim import Grouped, Optimizer, optimizer_named
from cllm.snapshot import load_snapshot
from cllm.strategies import MemoryBudget
from cllm.tokenizer import ByteTokenizer
from cllm.train.data import Data, load_data, reload_data, snapshot_tokenizer
from cllm.train.executors import Executors, budget_of
from cllm.train.keeper import Keeper
from cllm.train.pace import steps_in
from cllm.train.settings import TrainSettings


@dataclass(slots=True)
class Beginning:
    """What a run begins with; `notes` are for the user."""

    settings: TrainSettings
    optimizer: Optimizer | Grouped
    executors: Executors
    data: Data
    train_tokens: np.ndarray
    val_tokens: np.ndarray
    windows: corpus.Windows
    notes: list[str] = field(default_factory=list)


def begin(model: Model, text, tokenizer, budget: MemoryBudget | None, asked: dict, keeper: Keeper,
          state: dict | None) -> Beginning:
    """Settings, optimizer, executors and tokens; those of a snapshot, with its weights, where `state` is that of one.

    Parameters
    ----------
    text, tokenizer, budget : as of `Trainer`
    asked : dict
        Settings by name.

    Raises
    ------
    ConfigError, DataError, SnapshotError, BudgetError
    """
    then = None if state is None else state["training"]
    settings = TrainSettings(**asked) if then is None else TrainSettings.restored(then["settings"], asked,
                                                                                  f"resume of {keeper.out}")
    if then is None and settings.hours is not None and "steps" in asked:
        raise ConfigError("train(steps=..., hours=...)", "must not both be given",
                          f"{settings.steps} and {settings.hours:g}", "Leave one of them out.")
    s, budget = settings, budget or budget_of(settings)
    # before the optimizer makes its state, and once: what the model has is of the run's own
    budget = None if budget is None else budget.read(model.held_bytes)
    optimizer = optimizer_named(s.optimizer, model, s.lr, s.betas, s.eps, s.weight_decay)
    executors = Executors(model, s, optimizer.kind, budget)
    executors.of(s.batch_size, s.seq_len)
    if then is None:
        data = load_data(text, tokenizer or ByteTokenizer(), keeper.out, model.program.vocabulary)
    else:
        tokenizer = tokenizer or snapshot_tokenizer(keeper.latest, state)
        data = reload_data(then["data"], text, tokenizer, keeper.out, model.program.vocabulary)
    train, validation = corpus.split(data.tokens, s.val_fraction, s.seq_len)
    found = Beginning(s, optimizer, executors, data, train, validation, corpus.Windows(train, s.seq_len, s.seed))
    if then is None and s.hours is not None:
        found.settings = executors.settings = TrainSettings(**{**asked, "steps": steps_in(model, found)})
        found.notes.append(f"{s.hours:g} hours are about {found.settings.steps:,} steps at the pace of this machine")
    if then is not None:
        load_snapshot(keeper.latest, model, optimizer)
        keeper.restore(then)
        found.notes += _changed_rate(then["settings"], settings, state["step"])
    return found


def _changed_rate(kept: dict, settings: TrainSettings, step: int) -> list[str]:
    """A note where another number of steps makes the rate jump."""
    before = TrainSettings(**{**kept, "strategy": "cache", "memory_budget": None}).rates()(step)
    now = settings.rates()(step)
    if before == now or step >= settings.steps:
        return []
    return [f"the rate goes on at {now:.2e} where it would have been {before:.2e}: it now falls over {settings.steps:,} "
            f"steps, not {kept['steps']:,}"]
