"""A command that several processes run together: the first speaks, and all end when one does."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps

import click

from cllm.distributed import MPITeam, launched


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
        if not team.leave(patient=False):
            click.echo(f"Error: process {team.rank} of {team.size}: {error or type(error).__name__}; all are ended", err=True)
            sys.stderr.flush()
            team.abort()
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
