"""Points of PyTorch for the picture of memory against time, from a result of ``profiling/compare.py --peers``.

They come from a file, since cllm itself never imports PyTorch, and only from a run of the same model, batch and number
of threads. `growth_bytes` there is counted from the model on; here parameters belong to the memory, as they do to
cllm's own points, so their bytes are added.
"""

import json
from pathlib import Path

from cllm.comparison.job import Job
from cllm.errors import DataError
from cllm.models.architecture import record_of
from cllm.models.families import family_of
from cllm.program.workload import Workload
from cllm.schedule.report import parameter_bytes

PREFIX = "torch"


def read_peers(path: Path) -> dict:
    """A result of ``profiling/compare.py`` as plain data.

    Raises
    ------
    DataError
        When the file is no such result, or has no points of PyTorch.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [(row["name"], float(row["seconds"]["median"]), row["growth_bytes"]) for row in found["rows"]]
        data = {"family": family_of(found), "config": dict(found["config"]), "batch_size": found["batch_size"],
                "seq_len": found["seq_len"], "threads": found["threads"], "date": str(found["date"]),
                "cpu": str(found["machine"]["cpu"])}
        points = [(str(name), seconds, int(growth)) for name, seconds, growth in rows
                  if name.startswith(PREFIX) and growth is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("--peers", "must be a file that profiling/compare.py wrote", f"{path}: {type(error).__name__}: {error}",
                        "Run python profiling/compare.py --peers --out FILE.") from error
    if not points:
        raise DataError("--peers", "must have points of PyTorch", str(path), "Run python profiling/compare.py --peers.")
    return {**data, "points": points}


def peers_of(job: Job, found: dict) -> dict | None:
    """The points for a job: ``date``, ``cpu``, ``points`` of ``name``, ``step_seconds``, ``memory_bytes``; or None.

    None when the file measured another model, batch or number of threads.
    """
    mine = {**record_of(job.architecture), "batch_size": job.batch_size, "seq_len": job.seq_len, "threads": job.threads}
    if mine != {name: found[name] for name in mine} or (job.dtype, job.compute) != ("float32", "float32"):
        return None
    workload = Workload(job.batch_size, job.seq_len, job.dtype)
    parameters = parameter_bytes(job.architecture.program, workload)
    return {"date": found["date"], "cpu": found["cpu"],
            "points": [{"name": name, "step_seconds": seconds, "memory_bytes": growth + parameters}
                       for name, seconds, growth in found["points"]]}
