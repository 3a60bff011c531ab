"""The folder of a run: its lock, and the config.json that later commands on it are compared with."""

from __future__ import annotations

import fcntl
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError, WorkdirInUseError


@contextmanager
def lock_workdir(workdir: Path, *, hold: bool = True) -> Iterator[None]:
    """Lock the workdir for this process. The kernel releases the lock however the process ends.

    hold: False for a process whose process 0 holds the lock. The folder is then only created.

    Raises:
      UserError: the folder cannot be made or written.
      WorkdirInUseError: another process holds it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"The workdir {workdir} cannot be written ({error}); choose another with --workdir=…"
        ) from error
    with lock:
        try:
            if hold:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirInUseError(
                f"Another process runs in {workdir}; wait for it, or choose another folder with --workdir=…"
            ) from error
        except OSError as error:
            raise UserError(
                f"The file system of {workdir} locks no files ({error}), so two runs could write there at once; choose "
                "a folder elsewhere with --workdir=…"
            ) from error
        yield


def write_or_check_config(
    workdir: Path,
    config: dict[str, Any],
    data: dict[str, str],
    *,
    free: tuple[str, ...],
    defaults: dict[str, Any],
) -> None:
    """Write config.json on the first run; on a later one refuse a changed config or changed data.

    Args:
      config: dotted key → value.
      data: what identifies the data: the tables' checksums and the split's hash, which covers the images that are
        there and their parts. With equal ones `data.root` may have moved.
      free: keys that may change because they cannot change a result.
      defaults: the value of a key that the workdir's config.json does not have, because it was added later.

    Raises:
      UserError: with one line per changed key.
    """
    path = workdir / "config.json"
    content = {"config": config, "data": data}
    if path.exists():
        old = _read_config_file(workdir)
        allowed = [key for key in free if key != "data.root" or old["data"] == data]
        changed = describe_changed_keys({**defaults, **old["config"]}, config, allowed)
        changed += [
            f"{name} of data.root: {old['data'].get(name)} → {data.get(name)} (files changed, came or went)"
            for name in sorted(data.keys() | old["data"].keys())
            if old["data"].get(name) != data.get(name)
        ]
        if changed:
            raise UserError(
                f"{workdir} was started with another config or other data:\n  "
                + "\n  ".join(changed)
                + "\nGo on with the old values, or choose another folder with --workdir=…"
            )
    files.write_json(path, content)


def describe_changed_keys(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str]
) -> list[str]:
    """'key: old → new' of each dotted key that differs and is not allowed to."""
    return [
        f"{key}: {before.get(key)!r} → {now.get(key)!r}"
        for key in sorted(now.keys() | before.keys())
        if key not in allowed and before.get(key) != now.get(key)
    ]


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is a checkpoint to resume from. Then the pretrained weights are not needed."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def read_config(workdir: Path) -> dict[str, Any]:
    """Dotted key → value, as `write_or_check_config` wrote it. Raises UserError where config.json has another form."""
    config: dict[str, Any] = _read_config_file(workdir)["config"]
    return config


def _read_config_file(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    content = files.read_json(path)
    if not isinstance(content, dict) or not {"config", "data"} <= content.keys():
        raise UserError(
            f"{path} is not of this version's form; go on with the version that wrote it, or choose another "
            "folder with --workdir=…"
        )
    return content
