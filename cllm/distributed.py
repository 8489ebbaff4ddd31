"""Several processes on one batch, by MPI: `Executor`, and `MPITeam`, all that stands between them. It takes ``mpi4py``.

Every process runs the same program: ``mpirun -n 4 python train.py``. Each makes the same model and the same executor, is fed
the same whole batch, and takes its share of the batch's groups. Parameters, losses, norms and errors are the same in all.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from cllm.checks import installing
from cllm.errors import ConfigError
from cllm.executor.executor import Executor as OneExecutor
from cllm.models.model import Model

# What launchers set in the processes that they start: Open MPI, MPICH and Intel MPI, PMIx (Slurm among others).
LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
LAUNCHER = "mpirun --bind-to none"  # by itself Open MPI binds each of two processes to one core, whatever threads it has
PATIENCE, TICK = 10.0, 0.05  # seconds that a process that failed waits for the others to end, and between two looks


class MPITeam:
    """Processes of a communicator of mpi4py, as an executor takes them (`cllm.executor.groups.Team`).

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
        None is all that were started together. It is duplicated, so that nobody else's messages are mistaken for ours.

    Raises
    ------
    ConfigError
        When mpi4py is not there, or finds no MPI.
    """

    def __init__(self, comm: Any = None):
        mpi = mpi_module()
        self._mpi, self._comm = mpi, (mpi.COMM_WORLD if comm is None else comm).Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        self._pause = Event()

    def tell(self, value) -> list:
        return self._comm.allgather(value)

    def swap(self, mine: np.ndarray, theirs: np.ndarray, peer: int) -> None:
        self._comm.Sendrecv(mine, peer, recvbuf=theirs, source=peer)

    def send(self, array: np.ndarray, peer: int) -> None:
        self._comm.Send(array, peer)

    def receive(self, array: np.ndarray, peer: int) -> None:
        self._comm.Recv(array, peer)

    def spread(self, array: np.ndarray, bounds: Sequence[tuple[int, int]]) -> None:
        counts = [stop - start for start, stop in bounds]
        self._comm.Allgatherv(self._mpi.IN_PLACE, [array, (counts, [start for start, _ in bounds])])

    def leave(self, patient: bool) -> bool:
        """Wait for all to come to their end; one that is not patient waits `PATIENCE` seconds, and False is that some have not
        come by then."""
        request, waited = self._comm.Ibarrier(), 0.0
        while not request.Test():
            if not patient and waited > PATIENCE:
                return False
            self._pause.wait(TICK)
            waited += TICK
        return True

    def fail(self, text: str) -> None:
        """This process cannot go on: unless all come to their end, say why and end them, who would wait for it for ever."""
        if not self.leave(patient=False):
            print(f"Error: process {self.rank} of {self.size}: {text}; all are ended", file=sys.stderr, flush=True)
            self.abort()

    def abort(self) -> None:
        """End all processes."""
        self._comm.Abort(1)


def launched() -> MPITeam | None:
    """The processes that ``mpirun``, or another launcher of MPI, has started; None where this one was started alone.

    Raises
    ------
    ConfigError
        When there are some and mpi4py is missing.
    """
    if not any(name in os.environ for name in LAUNCHERS):
        return None
    team = MPITeam()
    return team if team.size > 1 else None


def launcher(command: str | None = None) -> list[str]:
    """The words of a command that starts processes, by its program's path: beside this interpreter, where the extra puts it, or
    the system's. ``-n R`` and the program that is to run may follow.

    Raises
    ------
    ConfigError
        When there is none.
    """
    program, *more = (command or LAUNCHER).split() or [""]
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.is_file() else shutil.which(program)
    if found is None:
        raise ConfigError("launcher", "must be a program that starts processes of MPI", repr(program),
                          f"{installing('mpi')} Or name your site's, such as srun.")
    return [found, *more]


class Executor(OneExecutor):
    """An executor whose groups several processes share; see `cllm.Executor` for its methods.

    The optimizer's state and the sums of gradients exist once among all processes: `train_step` reduces gradients into parts,
    updates each part where it is, and gathers the parameters. `loss_and_grad` leaves the whole gradients in every process;
    they are more than what the plan counts.

    Parameters
    ----------
    model : Model
    batch_size : int
        Of the whole batch, which every process is fed.
    seq_len : int or None
    groups : int or None
        As of `cllm.Executor`; the number of processes divides it. None is that number.
    comm : mpi4py.MPI.Comm or None
        The processes; None is all.
    **settings
        Other parameters of `cllm.Executor`. Bytes are those of each process.

    Raises
    ------
    ConfigError
        Besides those of `cllm.Executor`, when mpi4py is missing, when the number of processes does not divide `groups`, or
        when processes differ in what must be the same.
    """

    def __init__(self, model: Model, batch_size: int, seq_len: int | None = None, *, groups: int | None = None,
                 comm: Any = None, **settings: Any):
        team = MPITeam(comm)
        super().__init__(model, batch_size, seq_len, groups=team.size if groups is None else groups,
                         team=team if team.size > 1 else None, **settings)


def mpi_module():
    """``mpi4py.MPI``.

    Raises
    ------
    ConfigError
        When it cannot be imported.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError("several processes", "need mpi4py and an MPI that it finds", str(error),
                          f"{installing('mpi')} Or install mpi4py for your site's MPI.") from error
    return MPI
