"""The command: `python -m kacl_jax.sweep --config=configs/ablations.py --workdir=… [--dry_run] [--parallel=N]`.

The config file's `get_hyper` gives the points (hyper.py). Each point runs as `python -m kacl_jax.main` in a process and
a workdir of its own, WORKDIR/<arm>/fold<f>-seed<s>, so a point that crashes does not stop the others; its output is in
log.txt there. Finished points are skipped, interrupted points are resumed. After each point sweep.csv, sweep.md and
report.html are written again, while the next points run. Points share WORKDIR/compilation_cache, and with --parallel=N
the GPUs and the cores.
With --on=slurm the points become a job array of Slurm, and the command returns when they are submitted. The same
command later submits only points that are neither finished nor in the queue. --points=I runs one point, for any other
scheduler.
Exit codes are those of a single run: 0 all points are finished (or submitted) · 1 some failed · 75 interrupted,
resumable · 77 in use.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports, during which a signal may come
    from kacl_jax.runtime import output, signals

    signals.exit_on_signals("Stopped. Run the same command again to continue.")
    output.prepare_streams()

import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

from kacl_jax import config as config_keys
from kacl_jax.config import command_line
from kacl_jax.config.stored import read_config
from kacl_jax.data.records import read_records
from kacl_jax.runtime import signals
from kacl_jax.runtime.errors import (
    DONE,
    INTERRUPTED,
    USER_ERROR,
    WORKDIR_IN_USE,
    UserError,
    WorkdirInUseError,
)
from kacl_jax.runtime.workdir import has_checkpoint, is_in_use, lock_workdir
from kacl_jax.sweep import jobs, slurm
from kacl_jax.sweep.finished import FinishedPoints
from kacl_jax.sweep.hyper import Point, Sweep
from kacl_jax.sweep.plan import Plan, expand

flags.adopt_module_key_flags(command_line)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "List the points, one per line, and run nothing.")
_TABLE_ONLY = flags.DEFINE_bool("table_only", False, "Write the table again and run nothing.")
_ONLY = flags.DEFINE_list("only", [], "Run only the points of these arms: arm,arm")
_POINTS = flags.DEFINE_list(
    "points",
    [],
    "Run only these points and write no table: I or I,J, counted from 0 as --dry_run lists them.",
)
_PARALLEL = flags.DEFINE_integer("parallel", 1, "How many points run at once.", lower_bound=1)
_ON = flags.DEFINE_enum(
    "on",
    "local",
    ["local", "slurm"],
    "local: run on this machine. slurm: submit the points as a job array.",
)
_SLURM = flags.DEFINE_string(
    "slurm",
    "",
    "With --on=slurm: the options of sbatch, for example --slurm='--partition=gpu --gpus=1 --time=4:00:00'.",
)
_WAIT = flags.DEFINE_bool("wait", False, "With --on=slurm: stay until all points have ended.")
_STOPPED = "Stopped. Run the same command again to resume."
_STOPPED_WAITING = "Stopped waiting. The submitted points stay in the queue."
_POLL_S = 5.0

COMMAND = (sys.executable, "-m", "kacl_jax.main")


def check_points(plan: Plan, points: list[Point], finished: FinishedPoints) -> None:
    """Refuse every point that main would refuse, before the first point starts.

    Raises:
      UserError: lists all problems, each with the points that have it.
    """
    from kacl_jax.models import pretrained  # imports jax, but takes no device

    points_of_problem: dict[str, list[str]] = defaultdict(list)
    for point in points:
        try:
            config = plan.point_config(point)
            # The number of devices is checked when the point runs.
            config_keys.check(config, n_devices=1)
            if finished.is_finished(point):
                continue
            workdir = plan.point_workdir(point)
            if (workdir / "config.json").exists():
                plan.check_stored_config(point, read_config(workdir))
            if not has_checkpoint(workdir):
                pretrained.check(
                    config.model.pretrained,
                    encoder=config.model.encoder,
                    input_name=config.model.input,
                )
        except UserError as error:
            points_of_problem[str(error)].append(point.name)
    data = plan.config.data
    if data.root not in ("", "phantom"):
        try:
            read_records(
                data.root,
                findings=data.findings,
                uncertain=data.uncertain,
                allow_missing=data.allow_missing,
                image_size=data.image_size,
            )
        except UserError as error:
            points_of_problem[str(error)] = [point.name for point in points]
    if points_of_problem:
        lines = [
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {problem}"
            for problem, names in points_of_problem.items()
        ]
        raise UserError("Nothing was started.\n" + "\n".join(lines))


def run_sweep(
    plan: Plan, points: list[Point], *, parallel: int = 1, command: tuple[str, ...] = COMMAND
) -> int:
    """Run the points that are not finished and write the table after each; return the exit code.

    command: the point's arguments are appended to it.

    Raises:
      UserError: a point cannot run; raised before the first point starts.
      WorkdirInUseError: another process uses the workdir.
    """
    with lock_workdir(plan.workdir):
        finished = FinishedPoints(plan)
        check_points(plan, points, finished)
        finished.write_table()
        outcome = _run_points(plan, points, finished, finished.write_table, parallel, command)
        has_table = _print_table(plan.workdir, finished)
    return _report(outcome) or (DONE if has_table else USER_ERROR)


def run_alone(
    plan: Plan, points: list[Point], *, parallel: int = 1, command: tuple[str, ...] = COMMAND
) -> int:
    """As `run_sweep`, but other processes may run other points of this sweep meanwhile, and nobody writes the table."""
    finished = FinishedPoints(plan)
    check_points(plan, points, finished)
    return _report(_run_points(plan, points, finished, lambda: None, parallel, command))


def submit_sweep(
    plan: Plan,
    points: list[Point],
    options: slurm.Options,
    *,
    parallel: int,
    wait: bool,
    command: tuple[str, ...],
) -> int:
    """Submit the points that are neither finished nor in Slurm's queue; return the exit code.

    wait: return only when the points have left the queue. command: as in `run_sweep`.

    Raises:
      UserError: a point cannot run, or Slurm refuses the jobs. Nothing is submitted then.
      WorkdirInUseError: another process uses the workdir.
    """
    from kacl_jax.runtime import compilation  # imports jax, but takes no device

    with lock_workdir(plan.workdir):
        finished = FinishedPoints(plan)
        check_points(plan, points, finished)
        finished.write_table()
        queued = slurm.queued_points(plan.workdir)
        left = []
        for point in _unfinished(points, finished):
            if point.name in queued:
                jobs.print_line(f"{point.name} is in the queue as job {queued[point.name]}")
            else:
                cores = _worker_arguments(plan, point, options.get("cpus_per_task"))
                left.append(plan.job(point, command, cores))
        if left:
            environment = compilation.cache_environment(plan.workdir / "compilation_cache")
            table_command = [sys.executable, "-m", "kacl_jax.sweep", *sys.argv[1:], "--table_only"]
            submitted = slurm.submit(
                left,
                plan.workdir,
                options,
                parallel=parallel,
                environment=environment,
                table_command=table_command,
            )
            for job, point_job in zip(submitted[:-1], left, strict=True):
                jobs.print_line(f"{point_job.name} is submitted as job {job.job_id}")
    return _wait_for_queue(plan, points) if wait else DONE


def _wait_for_queue(plan: Plan, points: list[Point]) -> int:
    """Wait until the points have left Slurm's queue, then write the table; return the exit code."""
    names = {point.name for point in points}
    try:
        while names & slurm.queued_points(plan.workdir).keys():
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        jobs.print_line(_STOPPED_WAITING)
        return INTERRUPTED
    finished = FinishedPoints(plan)
    has_table = _print_table(plan.workdir, finished)
    outcome = jobs.Outcome()
    for point in points:
        if not finished.is_finished(point):
            lines = plan.job(point, ()).log_tail()
            outcome.failed[point.name] = lines[-1] if lines else "no message"
    return _report(outcome) if has_table else USER_ERROR


def _run_points(
    plan: Plan,
    points: list[Point],
    finished: FinishedPoints,
    refresh: Callable[[], object],
    parallel: int,
    command: tuple[str, ...],
) -> jobs.Outcome:
    """Run the points that are not finished. One that another process runs is waited for.

    refresh: see `jobs.run_jobs`.
    """
    from kacl_jax.runtime import compilation  # imports jax, but takes no device

    environment = compilation.cache_environment(plan.workdir / "compilation_cache")
    cores = None if parallel == 1 else max(1, (os.cpu_count() or 1) // parallel)
    outcome = jobs.Outcome()
    left = _unfinished(points, finished)
    while left and not outcome.interrupted:
        _wait_for_others(plan, left)
        queue = [
            plan.job(point, command, _worker_arguments(plan, point, cores))
            for point in left
            if not finished.is_finished(point)
        ]
        last = jobs.run_jobs(queue, parallel=parallel, refresh=refresh, environment=environment)
        outcome.failed |= last.failed
        outcome.interrupted = last.interrupted
        left = [point for point in left if point.name in last.in_use]
    return outcome


def _unfinished(points: list[Point], finished: FinishedPoints) -> list[Point]:
    """The points that are not finished; the others are printed."""
    left = []
    for point in points:
        if finished.is_finished(point):
            jobs.print_line(f"{point.name} is finished; skipped")
        else:
            left.append(point)
    return left


def _wait_for_others(plan: Plan, points: list[Point]) -> None:
    """Wait until no other process runs one of the points.

    A sweep that was killed leaves its points running, on the devices that the next points would get.
    """
    for point in points:
        if is_in_use(plan.point_workdir(point)):
            jobs.print_line(f"{point.name} still runs in another process; waiting for it to end")
            while is_in_use(plan.point_workdir(point)):
                time.sleep(_POLL_S)


def _report(outcome: jobs.Outcome) -> int:
    """Print which points failed; return the exit code."""
    for name, reason in outcome.failed.items():
        jobs.print_line(f"failed: {name}: {reason}")
    if outcome.interrupted:
        jobs.print_line(_STOPPED)
        return INTERRUPTED
    return USER_ERROR if outcome.failed else DONE


def _worker_arguments(plan: Plan, point: Point, cores: object) -> list[str]:
    """Give the radiomics workers the point's share of the cores, unless `feedback.workers` sets their number.

    cores: the share; None if the point has all cores of its machine.
    """
    if cores is None or plan.point_config(point).feedback.workers:
        return []
    return [f"--config.feedback.workers={cores}"]


def _print_table(workdir: Path, finished: FinishedPoints) -> bool:
    """Print the last table. False if it cannot be written; the caller still has to report how the points ended."""
    try:
        print(finished.write_table())
    except UserError as error:
        jobs.print_line(str(error))
        return False
    print(f"Written to {workdir}: sweep.csv, sweep.md, report.html")
    return True


def main(argv: list[str]) -> int:
    """Parse the command line, run the sweep, and turn every UserError into one message and an exit code."""
    signals.raise_keyboard_interrupt()
    try:
        if len(argv) > 1:
            raise UserError(f"Unknown argument {', '.join(argv[1:])}; see --help")
        config = command_line.config()
        plan = expand(command_line.config_name(), config, command_line.workdir())
        points = _select_points(plan.sweep)
        if _DRY_RUN.value:
            for point in points:
                print(f"{point.name}  {shlex.join(plan.overrides(point))}")
            return DONE
        if _TABLE_ONLY.value:
            print(FinishedPoints(plan).write_table())
            return DONE
        if _ON.value == "slurm":
            options = slurm.parse_options(_SLURM.value)
            return submit_sweep(
                plan,
                points,
                options,
                parallel=_PARALLEL.value,
                wait=_WAIT.value,
                command=COMMAND,
            )
        if _SLURM.value or _WAIT.value:
            raise UserError("--slurm and --wait need --on=slurm")
        run = run_alone if _POINTS.value else run_sweep
        return run(plan, points, parallel=_PARALLEL.value, command=COMMAND)
    except WorkdirInUseError as error:
        return command_line.print_error(error, WORKDIR_IN_USE)
    except UserError as error:
        return command_line.print_error(error, USER_ERROR)
    except KeyboardInterrupt:
        return command_line.print_error(_STOPPED, INTERRUPTED)


def _select_points(sweep: Sweep) -> list[Point]:
    known = [arm.name for arm in sweep.arms]
    unknown = [name for name in _ONLY.value if name not in known]
    if unknown:
        raise UserError(f"There is no arm {', '.join(unknown)}; choose from: {', '.join(known)}")
    points = [p for p in sweep.points if not _ONLY.value or p.arm.name in _ONLY.value]
    if not _POINTS.value:
        return points
    wrong = [text for text in _POINTS.value if not text.isdecimal() or int(text) >= len(points)]
    if wrong:
        raise UserError(
            f"--points={','.join(wrong)}: give numbers from 0 to {len(points) - 1}, as --dry_run lists the points"
        )
    return [points[number] for number in sorted({int(text) for text in _POINTS.value})]


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
