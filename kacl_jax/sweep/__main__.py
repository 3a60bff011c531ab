"""The command: `python -m kacl_jax.sweep --config=configs/ablations.py --workdir=… [--dry_run] [--parallel=N]`.

The config file's `get_hyper` gives the points (hyper.py). Each point runs as `python -m kacl_jax.main` in a process and
a workdir of its own, WORKDIR/<arm>/fold<f>-seed<s>, so a point that crashes does not stop the others; its output is in
log.txt there. Finished points are skipped, interrupted points are resumed. After each point sweep.csv, sweep.md and
report.html are written again, while the next points run. Points share WORKDIR/compilation_cache, and with --parallel=N
the GPUs and the cores.
Exit codes are those of a single run: 0 all points are finished · 1 some failed · 75 interrupted, resumable · 77 in use.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections import defaultdict
from pathlib import Path

from absl import app, flags

from kacl_jax import config as config_keys
from kacl_jax.config import command_line
from kacl_jax.config.stored import read_config
from kacl_jax.data.records import read_records
from kacl_jax.runtime import output
from kacl_jax.runtime.errors import (
    DONE,
    INTERRUPTED,
    USER_ERROR,
    WORKDIR_IN_USE,
    UserError,
    WorkdirInUseError,
)
from kacl_jax.runtime.workdir import has_checkpoint, lock_workdir
from kacl_jax.sweep import jobs
from kacl_jax.sweep.finished import FinishedPoints
from kacl_jax.sweep.hyper import Point, Sweep
from kacl_jax.sweep.plan import Plan, expand

flags.adopt_module_key_flags(command_line)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "List the points, one per line, and run nothing.")
_TABLE_ONLY = flags.DEFINE_bool("table_only", False, "Write the table again and run nothing.")
_ONLY = flags.DEFINE_list("only", [], "Run only the points of these arms: arm,arm")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "How many points run at once.", lower_bound=1)
_STOPPED = "Stopped. Run the same command again to resume."

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
                pretrained.check(config.model.pretrained, encoder=config.model.encoder)
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
    from kacl_jax.runtime import compilation  # imports jax, but takes no device

    with lock_workdir(plan.workdir):
        finished = FinishedPoints(plan)
        check_points(plan, points, finished)
        finished.write_table()
        left = [point for point in points if not finished.is_finished(point)]
        for point in points:
            if point not in left:
                jobs.print_line(f"{point.name} is finished; skipped")
        queue = [
            jobs.Job(
                point.name,
                [*command, *plan.arguments(point), *_worker_arguments(plan, point, parallel)],
                plan.point_workdir(point),
            )
            for point in left
        ]
        outcome = jobs.run_jobs(
            queue,
            parallel=parallel,
            refresh=finished.write_table,
            environment=compilation.cache_environment(plan.workdir / "compilation_cache"),
        )
        has_table = _print_table(plan.workdir, finished)
    for name, reason in outcome.failed.items():
        jobs.print_line(f"failed: {name}: {reason}")
    if outcome.interrupted:
        jobs.print_line(_STOPPED)
        return INTERRUPTED
    return DONE if has_table and not outcome.failed else USER_ERROR


def _worker_arguments(plan: Plan, point: Point, parallel: int) -> list[str]:
    """Split the cores for radiomics among points that run at once, unless `feedback.workers` sets their number."""
    if parallel == 1 or plan.point_config(point).feedback.workers:
        return []
    return [f"--config.feedback.workers={max(1, (os.cpu_count() or 1) // parallel)}"]


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
        return run_sweep(plan, points, parallel=_PARALLEL.value)
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
    return [point for point in sweep.points if not _ONLY.value or point.arm.name in _ONLY.value]


if __name__ == "__main__":
    output.prepare_streams()
    app.run(main, flags_parser=command_line.parse)
