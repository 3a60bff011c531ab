"""The command: `python -m kacl_jax.sweep --config=configs/ablations.py --workdir=… [--dry_run] [--parallel=N]`.

The config file's `get_hyper` gives the points (hyper.py). Each runs as `python -m kacl_jax.main` in a process and a
workdir of its own, WORKDIR/<arm>/fold<f>-seed<s>, with what it says in log.txt there: a point that dies takes nothing
with it. Finished points are skipped, interrupted ones go on. After each point sweep.csv and sweep.md are written anew.
Points share WORKDIR/compilation_cache, and with --parallel=N the GPUs and the cores.
Exit codes as of a single run: 0 all points are finished · 1 some failed · 75 interrupted, resumable · 77 in use.
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
from kacl_jax.config import command_line
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
from kacl_jax.runtime.workdir import changed_keys, has_checkpoint, lock_workdir, read_config
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
    """What was typed, expanded: the points and what they run with."""

    config_name: str  # with its variant
    config: ConfigDict  # of no arm, with what was typed for every point
    given: dict[str, Any]  # what was typed for every point
    sweep: Sweep
    workdir: Path
    measured: dict[Point, measure.Measured] = field(default_factory=dict)  # so far

    def place(self, point: Point) -> Path:
        """The point's workdir."""
        return self.workdir / point.name

    def overrides(self, point: Point) -> list[str]:
        """What differs from the config file, as it would be typed."""
        differing = {**self.given, **point.overrides}
        return [f"--config.{key}={value}" for key, value in differing.items()]

    def words(self, point: Point) -> list[str]:
        """What follows `python -m kacl_jax.main`."""
        return [
            f"--config={self.config_name}",
            *self.overrides(point),
            f"--workdir={self.place(point)}",
        ]

    def point_config(self, point: Point) -> ConfigDict:
        """The whole config of a point. Raises UserError on a value of the wrong type."""
        config = self.config.copy_and_resolve_references()
        try:
            config.update_from_flattened_dict(point.overrides)
        except TypeError as error:
            raise UserError(f"arm {point.arm.name}: {error}") from error
        return config

    def finished(self, point: Point) -> bool:
        """Whether it was trained to its last step and tested after that, as main itself would see it."""
        results = self.place(point) / "results.json"
        if not results.exists():
            return False
        # The first validation ends the first epoch.
        log = files.read_json_lines(self.place(point) / "metrics.jsonl")
        steps = (line["step"] for line in log if line["kind"] == "val")
        epochs = point.overrides.get("train.epochs", self.config.train.epochs)
        total = epochs * next(steps, 0)
        return bool(total and files.read_json(results).get("trained_steps") == total)


def expand(config_name: str, config: ConfigDict, workdir: Path) -> Plan:
    """The plan of a config file's sweep.

    Args:
      config_name: the file, with its variant if it has one.
      config: what that file gives, with what was typed over it.

    Raises:
      UserError: the file gives no sweep; an arm sets a key that there is not, or one that was typed for every point.
    """
    path, colon, variant = config_name.partition(":")
    given_file = runpy.run_path(path)
    if "get_hyper" not in given_file:
        raise UserError(f"{path} defines no function get_hyper, so it is no sweep; see {__file__}")
    argument = [variant] if colon else []
    flat, raw = (config_keys.flatten(c) for c in (config, given_file["get_config"](*argument)))
    given = {key: value for key, value in flat.items() if value != raw[key]}
    sweep = _called(given_file["get_hyper"], argument, path)
    problems = []
    for arm in sweep.arms:
        problems += [
            f"arm {arm.name} sets {key}, which is no key; all keys are in kacl_jax/config/keys.py"
            for key in arm.overrides
            if key not in flat
        ]
    set_by = defaultdict(list)
    for point in sweep.points:
        for key in point.overrides.keys() & given.keys():
            set_by[key].append(point.arm.name)
    problems += [
        f"--config.{key} cannot be given for every point: it is what {', '.join(dict.fromkeys(names))} set"
        for key, names in set_by.items()
    ]
    if problems:
        raise UserError("The sweep cannot be expanded:\n  " + "\n  ".join(problems))
    return Plan(config_name, config, given, sweep, workdir)


def _called(get_hyper: Callable[..., Any], argument: list[str], path: str) -> Sweep:
    """What the config file's own function gives; whatever is wrong in it is told with its line."""
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


def check(plan: Plan, points: list[Point]) -> None:
    """Refuse, before the first point starts, every point that main would refuse.

    Raises:
      UserError: all problems, each with the points that have it.
    """
    from kacl_jax.models import pretrained  # with it comes jax, which takes no device by that

    refused: dict[str, list[str]] = defaultdict(list)
    for point in points:
        try:
            config = plan.point_config(point)
            # How many devices there are is for the points to find.
            config_keys.check(config, n_devices=1)
            _check_workdir(plan.place(point), config_keys.flatten(config))
            if not (has_checkpoint(plan.place(point)) or plan.finished(point)):
                pretrained.check(config.model.pretrained, encoder=config.model.encoder)
        except UserError as error:
            refused[str(error)].append(point.name)
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
            refused[str(error)] = [point.name for point in points]
    if refused:
        told = [
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {problem}"
            for problem, names in refused.items()
        ]
        raise UserError("Nothing was started.\n" + "\n".join(told))


def _check_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """A workdir that was started with other values is no point of this sweep.

    Keys that there were not yet when it was started count as if they had had their default.
    """
    if not (workdir / "config.json").exists():
        return
    defaults = config_keys.flatten(config_keys.default())
    old = {**defaults, **read_config(workdir)}
    changed = changed_keys(old, config, config_keys.FREE_KEYS)
    if changed:
        raise UserError(
            f"{workdir} was started with another config: {'; '.join(changed)}. Delete it, or give another --workdir"
        )


def write_table(plan: Plan) -> str:
    """sweep.csv, sweep.md and report.html of the finished points; returns the second.

    Raises:
      UserError: a point that ran with another config; points that cannot be compared.
    """
    for point in plan.sweep.points:
        if point not in plan.measured and plan.finished(point):
            _check_workdir(plan.place(point), config_keys.flatten(plan.point_config(point)))
            plan.measured[point] = measure.measure(plan.place(point))
    rows = compare.compare(plan.sweep.arms, plan.measured, box_share=plan.config.data.box_share)
    title = f"Sweep {plan.config_name}"
    text = table.as_markdown(title, plan.sweep.points, plan.measured, rows)
    files.write_text(plan.workdir / "sweep.csv", table.as_csv(rows))
    files.write_text(plan.workdir / "sweep.md", text)
    if plan.measured:
        page.write_sweep(plan.workdir, [point.name for point in plan.measured])
    return text


def run_sweep(
    plan: Plan, points: list[Point], *, parallel: int = 1, command: tuple[str, ...] = COMMAND
) -> int:
    """Run what is not finished, with a new table after each point; returns the exit code.

    command: what a point's words are appended to.

    Raises:
      UserError: before the first point starts, for any point that cannot run; WorkdirInUseError.
    """
    from kacl_jax.runtime import compilation  # with it comes jax, which takes no device by that

    with lock_workdir(plan.workdir):
        check(plan, points)
        write_table(plan)
        finished = [point for point in points if plan.finished(point)]
        for point in finished:
            jobs.say(f"{point.name} is finished; skipped")
        queue = [
            jobs.Job(
                point.name,
                [*command, *plan.words(point), *_share_of_cores(plan, point, parallel)],
                plan.place(point),
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
        told = _last_table(plan)
    for name, reason in outcome.failed.items():
        jobs.say(f"failed: {name}: {reason}")
    if outcome.interrupted:
        jobs.say("Stopped; the same command goes on from here.")
        return INTERRUPTED
    return DONE if told and not outcome.failed else USER_ERROR


def _share_of_cores(plan: Plan, point: Point, parallel: int) -> list[str]:
    """Of several points at once each takes its part of the cores for radiomics, unless the workers were counted."""
    if parallel == 1 or plan.point_config(point).feedback.workers:
        return []
    return [f"--config.feedback.workers={max(1, (os.cpu_count() or 1) // parallel)}"]


def _last_table(plan: Plan) -> bool:
    """Whether there is one; how the points ended is told in any case."""
    try:
        print(write_table(plan))
    except UserError as error:
        jobs.say(str(error))
        return False
    print(f"In {plan.workdir}: sweep.csv, sweep.md, report.html")
    return True


def main(argv: list[str]) -> int:
    """Parse, expand, run, and turn what a user must know into one message and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if len(argv) > 1:
            raise UserError(f"A sweep does not understand {', '.join(argv[1:])}; see --help")
        config = command_line.config()
        plan = expand(command_line.config_name(), config, command_line.workdir())
        points = _chosen(plan.sweep)
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


def _chosen(sweep: Sweep) -> list[Point]:
    known = [arm.name for arm in sweep.arms]
    unknown = [name for name in _ONLY.value if name not in known]
    if unknown:
        raise UserError(f"There is no arm {', '.join(unknown)}; there are: {', '.join(known)}")
    return [point for point in sweep.points if not _ONLY.value or point.arm.name in _ONLY.value]


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
