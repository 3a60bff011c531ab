"""config.json of a workdir: the config that the run was started with, and what identifies its data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kacl_jax.config.keys import FREE_KEYS, KEYS, Key, flatten
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError


def read_config(workdir: Path) -> dict[str, Any]:
    """Dotted key → value, as the run was started. A key that its code did not have yet gets the table's `before`.

    Raises:
      UserError: config.json has another form, or lacks a key that it always had.
    """
    return _read(workdir)[0]


PIXELS = "pixels of 16 images"  # this name in `data` is younger than the others


def write_config(workdir: Path, config: dict[str, Any], data: dict[str, str]) -> None:
    """Write config.json. What was there must have passed `check_config`."""
    files.write_json(workdir / "config.json", {"config": config, "data": data})


def keep_old_values(config: ConfigDict, workdirs: Iterable[Path]) -> list[str]:
    """Give a config what the first started one of these workdirs did before some of today's keys existed.

    A key changes that its config.json does not have, if today's default differs from what the code did then. A value
    that is not the default was chosen, and stays.

    Returns:
      'key=value' of each changed key.
    """
    started = next((w for w in workdirs if (w / "config.json").exists()), None)
    if started is None:
        return []
    stored = _read_content(started)["config"]
    now = flatten(config)
    old = {
        name: key.before
        for name, key in KEYS.items()
        if not (name in stored or key.free or key.before is None)
        and key.before != key.default == now[name]
    }
    config.update_from_flattened_dict(old)
    return [f"{name}={value}" for name, value in old.items()]


def check_config(workdir: Path, config: dict[str, Any], data: dict[str, str]) -> None:
    """Refuse a workdir that was started with another config or other data. A new workdir is right.

    Args:
      config: dotted key → value.
      data: what identifies the data: the tables' checksums, the split's hash, which covers the images that are
        there and their parts, and a hash of some pixels. With equal ones `data.root` may have moved.

    Raises:
      UserError: as `read_config`, or with one line per changed key.
    """
    if (workdir / "config.json").exists():
        old_config, old_data = _read(workdir)
        if PIXELS in data:
            old_data.setdefault(PIXELS, data[PIXELS])
        free = [key for key in FREE_KEYS if key != "data.root" or old_data == data]
        changed = describe_changed_keys(old_config, config, free)
        changed += [
            f"{name} of data.root: {old_data.get(name)} → {data.get(name)} (files were changed, added or removed)"
            for name in sorted(data.keys() | old_data.keys())
            if old_data.get(name) != data.get(name)
        ]
        if changed:
            raise UserError(
                f"{workdir} was started with another config or other data:\n  "
                + "\n  ".join(changed)
                + "\nUse the old values, or choose another folder with --workdir=…"
            )


def describe_changed_keys(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = FREE_KEYS
) -> list[str]:
    """'key: old → new' of each dotted key that differs and is not free to."""
    return [
        f"{key}: {before.get(key)!r} → {now.get(key)!r}"
        for key in sorted(now.keys() | before.keys())
        if key not in free and before.get(key) != now.get(key)
    ]


def _read(workdir: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The config, completed, and what identifies the data."""
    path, content = workdir / "config.json", _read_content(workdir)
    younger = {name: key.before for name, key in KEYS.items() if key.before is not None}
    config = {**younger, **content["config"]}
    if missing := [name for name in KEYS if name not in config]:
        raise UserError(
            f"{path} has no {', '.join(missing)}, which every version writes; restore the file, or choose another "
            "folder with --workdir=…"
        )
    if wrong := [name for name, key in KEYS.items() if not _has_type(key, config[name])]:
        raise UserError(
            f"{path}: {wrong[0]} is {config[wrong[0]]!r:.40}, which no version writes; restore the file, or choose "
            "another folder with --workdir=…"
        )
    return config, content["data"]


def _read_content(workdir: Path) -> dict[str, Any]:
    """What config.json says, as it stands there."""
    path = workdir / "config.json"
    content = files.read_json(path)
    is_dict = isinstance(content, dict)
    if not is_dict or not all(isinstance(content.get(x), dict) for x in ("config", "data")):
        raise UserError(
            f"{path} was written by another version of kacl_jax; use that version, or choose another folder with "
            "--workdir=…"
        )
    return dict(content)


def _has_type(key: Key, value: Any) -> bool:
    """Whether the value has the key's type as JSON has it: a pair is a list, and a float may be whole."""
    kind = type(key.default)
    in_json = {tuple: (list,), float: (float, int)}.get(kind, (kind,))
    is_text = key.text_too and isinstance(value, str)
    return is_text or (isinstance(value, in_json) and isinstance(value, bool) == (kind is bool))
