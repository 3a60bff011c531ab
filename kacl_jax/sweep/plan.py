"""A config file with a `get_hyper` → the points of its sweep, and the config and workdir of each."""

from __future__ import annotations

import runpy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kacl_jax import config as config_keys
from kacl_jax.config import command_line, reference
from kacl_jax.config.stored import describe_changed_keys, keep_old_values
from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep.hyper import Point, Sweep
from kacl_jax.sweep.jobs import Job


@dataclass(frozen=True, eq=False)
class Plan:
    """The sweep that the command line asks for: its points, and the config and workdir of each."""

    config_name: str  # the config file, with its variant
    config: ConfigDict  # before an arm's overrides, with those from the command line
    common_overrides: dict[str, Any]  # from the command line, for every point
    sweep: Sweep
    workdir: Path

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

    def job(self, point: Point, command: Sequence[str], more_arguments: Sequence[str] = ()) -> Job:
        """How to run the point: `command` with its arguments, and its log."""
        return Job(
            point.name,
            [*command, *self.arguments(point), *more_arguments],
            self.point_workdir(point),
        )

    def point_config(self, point: Point) -> ConfigDict:
        """The whole config of a point. Raises UserError on a value of the wrong type."""
        config = self.config.copy_and_resolve_references()
        try:
            config.update_from_flattened_dict(point.overrides)
        except TypeError as error:
            raise UserError(f"arm {point.arm.name}: {error}") from error
        return config

    def check_stored_config(self, point: Point, stored: Mapping[str, Any]) -> None:
        """Refuse the config that a point's workdir was started with, if it is another than the point's.

        stored: as `read_config` gives it.

        Raises:
          UserError: lists the keys that differ.
        """
        changed = describe_changed_keys(stored, config_keys.flatten(self.point_config(point)))
        if changed:
            raise UserError(
                f"{self.point_workdir(point)} was started with another config: {'; '.join(changed)}. Delete it, or "
                "give another --workdir"
            )


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
        raise UserError(
            f"{path} defines no function get_hyper, so it is not a sweep; see {__file__}"
        )
    argument = [variant] if colon else []
    sweep = _call_get_hyper(config_module["get_hyper"], argument, path)
    # A sweep that an older version began is finished as it began.
    keep_old_values(config, (workdir / point.name for point in sweep.points))
    flat, raw = (config_keys.flatten(c) for c in (config, config_module["get_config"](*argument)))
    common_overrides = {key: value for key, value in flat.items() if value != raw[key]}
    problems = []
    for arm in sweep.arms:
        problems += [
            f"arm {arm.name} sets {key}, which is not a key; all keys are in {reference.PAGE}"
            for key in arm.overrides
            if key not in flat
        ]
    arms_of_key = defaultdict(list)
    for point in sweep.points:
        for key in point.overrides.keys() & common_overrides.keys():
            arms_of_key[key].append(point.arm.name)
    problems += [
        f"--config.{key} cannot be given for every point, because these arms set it: {', '.join(dict.fromkeys(names))}"
        for key, names in arms_of_key.items()
    ]
    if problems:
        raise UserError("The sweep is not valid:\n  " + "\n  ".join(problems))
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
