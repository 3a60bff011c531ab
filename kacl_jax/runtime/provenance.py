"""Where a run comes from: command, versions, git state and devices."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "pyradiomics-bhklab",
    "SimpleITK",
)


def collect(devices: list[Any]) -> dict[str, Any]:
    """Date, command, versions, git state and devices, for run.json."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *_command_line()]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_state(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in devices],
        "host_cores": os.cpu_count(),
    }


def _command_line() -> list[str]:
    """The words after `python`. After `python -m` they begin with the module's name, not with its file's path."""
    spec = sys.modules["__main__"].__spec__
    start = sys.argv[:1] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return [*start, *sys.argv[1:]]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> str | None:
    """Commit of the source tree, '+dirty' with uncommitted changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+dirty"]
    try:
        described = subprocess.run(
            command, capture_output=True, encoding="utf-8", check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
