"""What a run begins with, afresh or from a snapshot; all that can be refused is refused here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike

from cllm._build_info import VERSION
from cllm.dispatch import arithmetic
from cllm.errors import ConfigError
from cllm.executor.groups import Team, together
from cllm.files import is_stream
from cllm.models.model import Model
from cllm.optim import Grouped, Optimizer, optimizer_named
from cllm.program.trained import checked_patterns, refuse_untrained
from cllm.snapshot import Base, load_snapshot
from cllm.strategies import MemoryBudget
from cllm.tokenizer import ByteTokenizer
from cllm.train.data import Data, load_data, reload_data, snapshot_tokenizer
from cllm.train.drawn import Drawn, drawn_or_text
from cllm.train.executors import Executors, budget_of, least_budget
from cllm.train.keeper import Keeper
from cllm.train.pace import steps_in
from cllm.train.settings import TrainSettings
from cllm.train.windowed import Windowed


@dataclass(slots=True)
class Beginning:
    """What a run begins with; `notes` are for the user."""

    settings: TrainSettings
    optimizer: Optimizer | Grouped
    executors: Executors
    source: Windowed | Drawn
    notes: list[str] = field(default_factory=list)


def begin(model: Model, text, tokenizer, data, eval_data, base, budget: MemoryBudget | None, asked: dict, keeper: Keeper,
          state: dict | None, team: Team | None = None) -> Beginning:
    """Settings, optimizer, executors and what is trained on; those of a snapshot, with its weights, where `state` is that of
    one.

    Parameters
    ----------
    text, tokenizer, data, eval_data, base, budget : as of `Trainer`
    asked : dict
        Settings by name.
    team : Team or None
        Other processes in the same run; the first of them writes what is to be written.

    Raises
    ------
    ConfigError, DataError, SnapshotError, BudgetError, or what `data` or `eval_data` raised
    """
    then = None if state is None else state["training"]
    trainable = checked_patterns("train(trainable=...)", asked.get("trainable"))
    trainable = model.trainable if trainable is None else trainable
    asked = {**{n: v for n, v in asked.items() if n != "trainable"}, **({} if trainable is None else {"trainable": trainable})}
    if model.compute != "float32":
        asked = {"compute": model.compute, **asked}
    settings = TrainSettings(**asked) if then is None else TrainSettings.restored(then["settings"], asked,
                                                                                  f"resume of {keeper.out}")
    if then is None and settings.hours is not None and "steps" in asked:
        raise ConfigError("train(steps=..., hours=...)", "must not both be given",
                          f"{settings.steps} and {settings.hours:g}", "Leave one of them out.")
    together(team, "run", lambda: _refuse_apart(settings, text) if team is not None else None,
             lambda: alike(settings, model.program.digest, model.dtype) | {"step": None if state is None else state["step"]})
    model.trainable = settings.trainable
    refuse_untrained("train", model.program)
    model.compute = settings.compute
    s, budget = settings, budget or budget_of(settings)
    source = together(team, "data", lambda: drawn_or_text(model, text, tokenizer, data, eval_data, asked,
                                                          None if then is None else then["data"]))
    # before the optimizer makes its state, and once: what the model has is of the run's own
    budget = least_budget(team, None if budget is None else budget.read(model.held_bytes))
    optimizer = optimizer_named(s.optimizer, model, s.lr, s.betas, s.eps, s.weight_decay)
    executors = Executors(model, s, optimizer.kind, budget, team=team)
    first = executors.of(*((s.batch_size, s.seq_len) if source is None else source.sizes))
    first.share(optimizer)  # before a snapshot is read into its states
    if source is None and then is None:
        data = _first_alone(team, lambda: load_data(text, tokenizer or ByteTokenizer(), keeper.out, model.program.vocabulary))
        source = Windowed(data, s)
    elif source is None:
        tokenizer = tokenizer or snapshot_tokenizer(keeper.latest, state)
        data = _first_alone(team, lambda: reload_data(then["data"], text, tokenizer, keeper.out, model.program.vocabulary))
        source = Windowed(data, s)
    found = Beginning(s, optimizer, executors, source, list(source.notes))
    if then is None and s.hours is not None:
        found.settings = executors.settings = TrainSettings(**{**asked, "steps": steps_in(model, found)})
        found.notes.append(f"{s.hours:g} hours are about {found.settings.steps:,} steps at the pace of this machine")
    if then is None and base is not None:
        keeper.base = Base.of(model, base)
    if then is not None:
        together(team, "resume", lambda: load_snapshot(keeper.latest, model, optimizer, base=base))
        kept = state.get("base")
        keeper.base = None if kept is None else Base.restored(kept, base)
        keeper.restore(then)
        found.notes += _other_kernels(state.get("arithmetic")) + _changed_rate(then["settings"], settings, state["step"])
    return found


def alike(settings: TrainSettings, model: str, dtype: str) -> dict:
    """What processes have to begin with alike, before they have data: all but what no result depends on."""
    free = ("threads", "strategy")
    return {"version": VERSION, "model": model, "dtype": dtype,
            **{name: value for name, value in settings.to_dict().items() if name not in free}}


def _refuse_apart(settings: TrainSettings, text) -> None:
    """Refuse what several processes cannot do together."""
    for name, value, must, do in (
            ("accumulate", settings.accumulate > 1 and settings.accumulate, "must be 1",
             "Take a batch so many times as large, in so many times as many groups."),
            ("hours", settings.hours, "must be left out", "Say how many steps."),
            ("text", isinstance(text, (str, PathLike)) and is_stream(text) and text, "must be files that each can read",
             "Write the text to a file.")):
        if value:
            raise ConfigError(f"train({name}=...)", f"{must} where several processes train", str(value), do)


def _first_alone(team: Team | None, load: Callable[[], Data]) -> Data:
    """Data that the first process loads, which may write a file of tokens, and the others after it."""
    if team is None:
        return load()
    first = together(team, "data", lambda: load() if team.rank == 0 else None)
    return together(team, "data", lambda: load() if first is None else first)


def _other_kernels(then: dict | None) -> list[str]:
    """What it means for bits that other kernels made the snapshot; earlier versions did not say which did."""
    now = arithmetic()
    if then is None or then == now:
        return []
    words = "the bits are the same, for both round a product and its sum once" if then["fuses"] and now["fuses"] else \
        "the bits may be others than there, for a product and its sum are not rounded once in both"
    return [f"the snapshot was made by kernels for {then['level']} on {then['machine']}, and the run goes on with "
            f"{now['level']} on {now['machine']}: {words}"]


def _changed_rate(kept: dict, settings: TrainSettings, step: int) -> list[str]:
    """A note where another number of steps makes the rate jump."""
    before = TrainSettings(**{**kept, "strategy": "cache", "memory_budget": None}).rates()(step)
    now = settings.rates()(step)
    if before == now or step >= settings.steps:
        return []
    return [f"the rate goes on at {now:.2e} where it would have been {before:.2e}: it now falls over {settings.steps:,} "
            f"steps, not {kept['steps']:,}"]
