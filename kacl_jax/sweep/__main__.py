"""The command: `python -m kacl_jax.sweep --config=configs/ablations.py --workdir=… [--dry_run] [--parallel=N]`.

The config file's `get_hyper` gives the points (hyper.py). Each point runs as `python -m kacl_jax.main` in a process and
a workdir of its own, WORKDIR/<arm>/fold<f>-seed<s>, so a point that crashes does not stop the others; its output is in
log.txt there. Finished points are skipped, interrupted points are resumed. After each point sweep.csv, sweep.md and
report.html are written anew. Points share WORKDIR/compilation_cache, and with --parallel=N the GPUs and the cores.
Exit codes are those of a single run: 0 all points are finished · 1 some failed · 75 interrupted, resumable · 77 in use.
"""

from __future__ import annotations

import os
import runpy
import shlex
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from kacl_jax import config as config_keys
from kacl_jax.config import command_line, reference
from kacl_jax.config.stored import describe_changed_keys, read_config
from kacl_jax.data import nih
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import (
    DONE,
    INTERRUPTED,
    USER_ERROR,
    WORKDIR_IN_USE,
    UserError,
    WorkdirInUseError,
)
from kacl_jax.runtime.workdir import has_checkpoint, lock_workdir
from kacl_jax.sweep import compare, jobs, measure, page, table
from kacl_jax.sweep.hyper import Point, Sweep

flags.adopt_module_key_flags(command_line)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "List the points, one a line, and run nothing.")
_TABLE_ONLY = flags.DEFINE_bool("table_only", False, "Write the table anew and run nothing.")
_ONLY = flags.DEFINE_list("only", [], "Run the points of these arms only: arm,arm")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "How many points run at once.", lower_bound=1)

COMMAND = (sys.executable, "-m", "kacl_jax.main")


@dataclass(frozen=True, eq=False)
class Plan:
    """The sweep that the command line asks for: its points, and the config and workdir of each."""

    config_name: str  # the config file, with its variant
    config: ConfigDict  # before an arm's overrides, with those from the command line
    common_overrides: dict[str, Any]  # from the command line, for every point
    sweep: Sweep
    workdir: Path
    measurements: dict[Point, measure.RunMeasurements] = field(default_factory=dict)  # so far

    def point_workdir(self, point: Point) -> Path:
        """The point's workdir."""
        return self.workdir / point.name

    def overrides(self, point: Point) -> list[str]:
        """The keys that differ from the config file, as command-line flags."""
        differing = {**self.common_overrides, **point.overrides}
        return [f"--config.{key}={value}" for key, value in differing.items()]

    def arguments(self, point: Point) -> list[str]:
        """The command-line arguments of `python -m kacl_jax.main` for this point."""
        return [
            f"--config={self.config_name}",
            *self.overrides(point),
            f"--workdir={self.point_workdir(point)}",
        ]

    def point_config(self, point: Point) -> ConfigDict:
        """The whole config of a point. Raises UserError on a value of the wrong type."""
        config = self.config.copy_and_resolve_references()
        try:
            config.update_from_flattened_dict(point.overrides)
        except TypeError as error:
            raise UserError(f"arm {point.arm.name}: {error}") from error
        return config

    def is_finished(self, point: Point) -> bool:
        """Whether the point was trained to its last step and tested after that, by the same rule as main uses."""
        results = self.point_workdir(point) / "results.json"
        if not results.exists():
            return False
        # The first validation ends the first epoch.
        log = files.read_json_lines(self.point_workdir(point) / "metrics.jsonl")
        steps = (line["step"] for line in log if line["kind"] == "val")
        epochs = point.overrides.get("train.epochs", self.config.train.epochs)
        total = epochs * next(steps, 0)
        return bool(total and files.read_json(results).get("trained_steps") == total)


def expand(config_name: str, config: ConfigDict, workdir: Path) -> Plan:
    """The plan of a config file's sweep.

    Args:
      config_name: the file, with its variant if it has one.
      config: the config of that file, with the overrides from the command line.

    Raises:
      UserError: the file gives no sweep; an arm sets a key that does not exist, or one that the command line sets.
    """
    path, colon, variant = config_name.partition(":")
    config_module = runpy.run_path(path)
    if "get_hyper" not in config_module:
        raise UserError(f"{path} defines no function get_hyper, so it is no sweep; see {__file__}")
    argument = [variant] if colon else []
    flat, raw = (config_keys.flatten(c) for c in (config, config_module["get_config"](*argument)))
    common_overrides = {key: value for key, value in flat.items() if value != raw[key]}
    sweep = _call_get_hyper(config_module["get_hyper"], argument, path)
    problems = []
    for arm in sweep.arms:
        problems += [
            f"arm {arm.name} sets {key}, which is no key; all keys are in {reference.PAGE}"
            for key in arm.overrides
            if key not in flat
        ]
    arms_of_key = defaultdict(list)
    for point in sweep.points:
        for key in point.overrides.keys() & common_overrides.keys():
            arms_of_key[key].append(point.arm.name)
    problems += [
        f"--config.{key} cannot be given for every point: it is what {', '.join(dict.fromkeys(names))} set"
        for key, names in arms_of_key.items()
    ]
    if problems:
        raise UserError("The sweep cannot be expanded:\n  " + "\n  ".join(problems))
    return Plan(config_name, config, common_overrides, sweep, workdir)


def _call_get_hyper(get_hyper: Callable[..., Any], argument: list[str], path: str) -> Sweep:
    """Call the config file's `get_hyper`. Any exception in it becomes a UserError that names the line."""
    try:
        sweep = get_hyper(*argument)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{command_line.place_in_config_file(error) or path}: {error}") from error
    if not isinstance(sweep, Sweep):
        raise UserError(
            f"{path}: get_hyper returns {sweep!r:.80}, not a kacl_jax.sweep.hyper.Sweep"
        )
    return sweep


def check_points(plan: Plan, points: list[Point]) -> None:
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
            _check_workdir(plan.point_workdir(point), config_keys.flatten(config))
            if not (has_checkpoint(plan.point_workdir(point)) or plan.is_finished(point)):
                pretrained.check(config.model.pretrained, encoder=config.model.encoder)
        except UserError as error:
            points_of_problem[str(error)].append(point.name)
    data = plan.config.data
    if data.root not in ("", "phantom"):
        try:
            nih.read_records(
                data.root,
                findings=data.findings,
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


def _check_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Refuse a workdir that was started with another config."""
    if not (workdir / "config.json").exists():
        return
    changed = describe_changed_keys(read_config(workdir), config)
    if changed:
        raise UserError(
            f"{workdir} was started with another config: {'; '.join(changed)}. Delete it, or give another --workdir"
        )


def write_table(plan: Plan) -> str:
    """Write sweep.csv, sweep.md and report.html of the finished points; return the text of sweep.md.

    Raises:
      UserError: a point that ran with another config; points that cannot be compared.
    """
    for point in plan.sweep.points:
        if point not in plan.measurements and plan.is_finished(point):
            _check_workdir(plan.point_workdir(point), config_keys.flatten(plan.point_config(point)))
            plan.measurements[point] = measure.measure_run(plan.point_workdir(point))
    rows = compare.compare_arms(
        plan.sweep.arms, plan.measurements, box_share=plan.config.data.box_share
    )
    title = f"Sweep {plan.config_name}"
    text = table.as_markdown(title, plan.sweep.points, plan.measurements, rows)
    files.write_text(plan.workdir / "sweep.csv", table.as_csv(rows))
    files.write_text(plan.workdir / "sweep.md", text)
    if plan.measurements:
        page.write_sweep(plan.workdir, [point.name for point in plan.measurements])
    return text


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
        check_points(plan, points)
        write_table(plan)
        finished = [point for point in points if plan.is_finished(point)]
        for point in finished:
            jobs.print_line(f"{point.name} is finished; skipped")
        queue = [
            jobs.Job(
                point.name,
                [*command, *plan.arguments(point), *_worker_arguments(plan, point, parallel)],
                plan.point_workdir(point),
            )
            for point in points
            if point not in finished
        ]
        outcome = jobs.run_jobs(
            queue,
            parallel=parallel,
            after_each=lambda: write_table(plan),
            environment=compilation.cache_environment(plan.workdir / "compilation_cache"),
        )
        has_table = _print_table(plan)
    for name, reason in outcome.failed.items():
        jobs.print_line(f"failed: {name}: {reason}")
    if outcome.interrupted:
        jobs.print_line("Stopped; the same command goes on from here.")
        return INTERRUPTED
    return DONE if has_table and not outcome.failed else USER_ERROR


def _worker_arguments(plan: Plan, point: Point, parallel: int) -> list[str]:
    """Split the cores for radiomics among points that run at once, unless `feedback.workers` sets their number."""
    if parallel == 1 or plan.point_config(point).feedback.workers:
        return []
    return [f"--config.feedback.workers={max(1, (os.cpu_count() or 1) // parallel)}"]


def _print_table(plan: Plan) -> bool:
    """Print the last table. False if it cannot be written; the caller still has to report how the points ended."""
    try:
        print(write_table(plan))
    except UserError as error:
        jobs.print_line(str(error))
        return False
    print(f"In {plan.workdir}: sweep.csv, sweep.md, report.html")
    return True


def main(argv: list[str]) -> int:
    """Parse the command line, run the sweep, and turn every UserError into one message and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if len(argv) > 1:
            raise UserError(f"A sweep does not understand {', '.join(argv[1:])}; see --help")
        config = command_line.config()
        plan = expand(command_line.config_name(), config, command_line.workdir())
        points = _select_points(plan.sweep)
        if _DRY_RUN.value:
            for point in points:
                print(f"{point.name}  {shlex.join(plan.overrides(point))}")
            return DONE
        if _TABLE_ONLY.value:
            print(write_table(plan))
            return DONE
        return run_sweep(plan, points, parallel=_PARALLEL.value)
    except WorkdirInUseError as error:
        return command_line.print_error(error, WORKDIR_IN_USE)
    except UserError as error:
        return command_line.print_error(error, USER_ERROR)
    except KeyboardInterrupt:
        return command_line.print_error("Stopped; the same command goes on from here.", INTERRUPTED)


def _select_points(sweep: Sweep) -> list[Point]:
    known = [arm.name for arm in sweep.arms]
    unknown = [name for name in _ONLY.value if name not in known]
    if unknown:
        raise UserError(f"There is no arm {', '.join(unknown)}; there are: {', '.join(known)}")
    return [point for point in sweep.points if not _ONLY.value or point.arm.name in _ONLY.value]


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
