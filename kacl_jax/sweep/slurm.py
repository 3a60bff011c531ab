"""Runs points under Slurm: one job array, submitted through submitit.

WORKDIR/slurm holds submitit's files and jobs.json, which names the job of each point that was submitted. submitit hands
a function to its jobs in a pickle. Here that pickle holds strings and the name of a function.

Slurm sends a signal to all processes of a job, so `run_point` forwards none: kacl_jax.main would stop at the second
signal without saving.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kacl_jax.runtime import files
from kacl_jax.runtime.errors import INTERRUPTED, WORKDIR_IN_USE, UserError
from kacl_jax.sweep import jobs

_FOLDER = "slurm"
_MAX_RESTARTS = 20
_SIGNAL = "TERM@300"  # so long before its time limit a point is asked to save
# The last one: the signal came before kacl_jax.main could handle it.
_RESUMABLE = (INTERRUPTED, WORKDIR_IN_USE, -signal.SIGTERM)
_OWN_OPTIONS = ("array", "dependency", "error", "output")

Options = Mapping[str, str | bool]  # of sbatch: time → "4:00:00", exclusive → True


def parse_options(text: str) -> Options:
    """The options of sbatch in a text such as '--partition=gpu --gpus=1 --time=4:00:00'.

    Raises:
      UserError: a word is no option, an option is there twice or belongs to the sweep, or --time is missing.
    """
    options: dict[str, str | bool] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--slurm={text} cannot be read: {error}") from error
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        key = name.replace("-", "_")  # as submitit spells them
        if not word.startswith("--") or not name:
            raise UserError(f"--slurm has {word!r}; write options as --NAME=VALUE, with the = sign")
        if key in _OWN_OPTIONS:
            raise UserError(f"--slurm cannot have --{name}, because the sweep sets it; remove it")
        if key in options:
            raise UserError(f"--slurm has --{name} twice; keep one")
        options[key] = value if equals else True
    if "time" not in options:
        raise UserError(
            "--slurm needs the time limit of a point, such as --time=4:00:00; a point that takes longer saves, waits "
            "in the queue again and resumes"
        )
    return options


def queued_points(workdir: Path) -> dict[str, str]:
    """The points of the sweep in `workdir` that wait or run in Slurm's queue, each with its job.

    Raises:
      UserError: squeue does not answer.
    """
    job_of_point = _read_jobs(workdir)
    if not job_of_point:
        return {}
    command = ["squeue", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise UserError(
            f"squeue does not say which points are in the queue ({str(reason).strip()}); run this command again on a "
            "machine of the cluster"
        ) from error
    queue = set(done.stdout.split())
    return {name: job for name, job in job_of_point.items() if job in queue}


def submit(
    points: Sequence[jobs.Job],
    workdir: Path,
    options: Options,
    *,
    parallel: int,
    environment: Mapping[str, str],
    table_command: Sequence[str],
    cluster: str = "slurm",
) -> list[Any]:
    """Submit the points as one job array, and a job after it that writes the table.

    Args:
      points: at least one.
      options: from `parse_options`.
      parallel: how many points run at once.
      environment: variables for the points; those of the job override them.
      cluster: "local" runs the same code on this machine, all points at once, and takes no options.

    Returns:
      submitit's job of each point, and last that of the table.

    Raises:
      UserError: Slurm refuses the jobs, or a file cannot be written. Then nothing stays in the queue.
    """
    import submitit  # takes a quarter of a second

    submitted: list[Any] = []
    try:
        executor = _executor(workdir, options, parallel, cluster)
        submitted += executor.map_array(
            run_point,
            [list(point.command) for point in points],
            [str(point.folder.absolute()) for point in points],
            [dict(environment)] * len(points),
        )
        ids = [job.job_id for job in submitted]
        of_point = dict(zip((point.name for point in points), ids, strict=True))
        files.write_json(workdir / _FOLDER / "jobs.json", _read_jobs(workdir) | of_point)
        array = ids[0].partition("_")[0]
        executor.update_parameters(slurm_dependency=f"afterany:{array}")
        submitted.append(executor.submit(submitit.helpers.CommandFunction(list(table_command))))
    # submitit raises a RuntimeError where there is no Slurm or sbatch fails.
    except (OSError, RuntimeError, submitit.core.utils.FailedJobError) as error:
        _cancel(submitted)
        raise UserError(
            f"The points cannot be submitted: {' '.join(str(error).split())}"
        ) from error
    except BaseException:
        _cancel(submitted)
        raise
    return submitted


def _executor(workdir: Path, options: Options, parallel: int, cluster: str) -> Any:
    import submitit

    executor = submitit.AutoExecutor(workdir / _FOLDER, cluster=cluster)
    cpus = options.get("cpus_per_task")
    executor.update_parameters(
        name="kacl_sweep",
        stderr_to_stdout=True,
        slurm_array_parallelism=parallel,
        # Since Slurm 22.05 srun does not take this number from sbatch.
        slurm_srun_args=[f"--cpus-per-task={cpus}"] if cpus else [],
        slurm_additional_parameters={"signal": _SIGNAL, "requeue": True, **options},
    )
    return executor


def run_point(command: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run the command of a point in a job of Slurm. Put the job into the queue again if the point can resume.

    So it is after an interruption, and where another process still runs the point, for example on a node that Slurm
    has lost. It ends this process with the command's exit code unless that is 0.
    """
    import submitit

    process, _ = jobs.start_command(
        command, Path(folder), {**environment, **os.environ}, new_session=False
    )
    code = process.wait()
    job = submitit.JobEnvironment()
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if code in _RESUMABLE and restarts < _MAX_RESTARTS and _is_wanted(job):
        job._requeue(_MAX_RESTARTS - restarts)
    if code:
        sys.exit(code if code > 0 else 128 - code)  # as a shell says that a signal killed it


def _is_wanted(job: Any) -> bool:
    """Whether the job is neither cancelled nor requeued by Slurm itself."""
    if job.cluster != "slurm":
        return True
    state = subprocess.run(
        ["scontrol", "show", "job", job.job_id], capture_output=True, encoding="utf-8"
    )
    return "JobState=RUNNING" in state.stdout


def _read_jobs(workdir: Path) -> dict[str, str]:
    path = workdir / _FOLDER / "jobs.json"
    return files.read_json(path) if path.exists() else {}


def _cancel(submitted: Sequence[Any]) -> None:
    for job in submitted:
        job.cancel(check=False)
