"""A command that several processes run together: the first speaks, and all end when one does."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps

import click

from cllm._build_info import VERSION
from cllm.cli.options import calibrate_first
from cllm.distributed import MPITeam, launched
from cllm.errors import ConfigError
from cllm.executor.groups import together
from cllm.models.excerpt import Used
from cllm.program.workload import Workload
from cllm.strategies import MemoryBudget
from cllm.train import TrainSettings
from cllm.train.beginning import alike
from cllm.train.executors import budget_of, least_budget
from cllm.train.guard import refuse_if_running
from cllm.train.keeper import Keeper


@contextmanager
def taking_part() -> Iterator[MPITeam | None]:
    """The processes that a launcher of MPI has started with this one; None where there are none.

    What fails in all is told by the first. When one fails and the others do not come to their end, it tells, and ends them.
    """
    team = launched()
    if team is None:
        yield None
        return
    try:
        if team.rank == 0:
            yield team
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield team
    except BaseException as error:
        team.fail(str(error) or type(error).__name__)
        if team.rank == 0:
            raise
        raise SystemExit(1) from None
    team.leave(patient=True)


def with_processes(command: Callable) -> Callable:
    """A command that is handed `team`, what `taking_part` gives."""
    @wraps(command)
    def run(*arguments, **options):
        with taking_part() as team:
            return command(*arguments, team=team, **options)

    return run


def leads(team: MPITeam | None) -> bool:
    """Whether this process is the first, which speaks and writes."""
    return team is None or team.rank == 0


def state_in(keeper: Keeper, resume: bool, team: MPITeam | None) -> dict | None:
    """State of the snapshot with which a run goes on, the same in all processes; None where it begins.

    Raises
    ------
    SnapshotError, ConfigError
        When another run is in the directory, or processes find different things there.
    """
    together(team, "run", lambda: refuse_if_running(keeper.out) if leads(team) else None)
    return together(team, "run", lambda: keeper.find() if resume else None, lambda: {
        "version": VERSION, "command": click.get_current_context().info_name, "out": str(keeper.out),
        "snapshot": keeper.latest and keeper.latest.name})


def budget_for(wanted: TrainSettings, team: MPITeam | None, work: Workload, used: Used, measure: bool,
               decide: Callable[[object], object]) -> MemoryBudget | None:
    """The budget of a run that begins, one for all processes, after all of them have decided on a plan; None without one.

    Parameters
    ----------
    wanted : TrainSettings
    team : MPITeam or None
    work : Workload
    used : Used
        The model.
    measure : bool
        Whether the first process calibrates where a budget needs it.
    decide : callable
        Makes a plan with a strategy: what cannot be had is refused there, before there are arrays.

    Raises
    ------
    ConfigError, PlanError, BudgetError
        In all processes, where they are to train differently, too.
    """
    together(team, "run", lambda: None, lambda: alike(wanted, used.program.digest, work.dtype))
    budget = budget_of(wanted)
    budget = least_budget(team, None if budget is None else budget.read())  # once, while nothing is held
    strategy = budget or wanted.strategy
    together(team, "plan", lambda: decide(strategy))
    if measure and leads(team):
        calibrate_first(used, work, [strategy], None if budget is None else budget.nbytes)
    return budget


def refuse_others(command: str, instead: str) -> None:
    """Refuse to be one of several processes that a launcher of MPI has started; the first tells.

    Raises
    ------
    ConfigError
        In the first. The others end in peace, for a launcher would end all with the first of them that does not.
    """
    for size, rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")):
        count = os.environ.get(size, "1")
        if count != "1" and os.environ.get(rank, "0") != "0":
            raise SystemExit(0)
        if count != "1":
            raise ConfigError(command, "must be started once, and not by a launcher of MPI: every run is of fresh processes",
                              f"{count} of it", f"Use {instead} {count}.")
