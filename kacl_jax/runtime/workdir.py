"""What surrounds a run: its folder and lock, the config on disk, where it came from, and how it is interrupted."""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from kacl_jax.runtime import files as atomic
from kacl_jax.runtime.errors import UserError

DONE = 0
USER_ERROR = 1
INTERRUPTED = 75
NON_FINITE = 76
WORKDIR_IN_USE = 77

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


class WorkdirInUseError(UserError):
    """Another process runs in this workdir."""


class InterruptedRunError(Exception):
    """The run was asked to stop, saved what it had and can be resumed."""


class NonFiniteError(Exception):
    """The loss or a gradient was not finite; the update was not taken."""


_STOPPED = "Stopped; the same command goes on from the last checkpoint."


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that a user is meant to read; None for any other."""
    codes: tuple[tuple[type[BaseException], int], ...] = (
        (WorkdirInUseError, WORKDIR_IN_USE),
        (UserError, USER_ERROR),
        (InterruptedRunError, INTERRUPTED),
        (NonFiniteError, NON_FINITE),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), None)


@contextmanager
def locked(workdir: Path, *, hold: bool = True) -> Iterator[None]:
    """Hold the workdir for this process; the kernel lets go of it however the process ends.

    hold: False for a process of a run whose process 0 holds it: the folder is only made.

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


def stop_at_once() -> None:
    """From now on Ctrl-C and SIGTERM end this process, which loses no more by it than by `kill -9`.

    No exception: where a signal meets a garbage collector's callback, and jax has one, Python swallows what is raised.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, f"\n{_STOPPED}\n".encode())
    os._exit(INTERRUPTED)


class Interrupt:
    """Ctrl-C and SIGTERM, seen between two steps. A second signal ends the process at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def watched(self) -> Iterator[Interrupt]:
        """Listen while the context is open, then give the signals back to who had them."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(INTERRUPTED)
        self.requested = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nStopping after this step and saving; once more to stop at once.\n")


def settle_config(
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
      defaults: what a key that is younger than the workdir is taken to have been there.

    Raises:
      UserError: with one line per changed key.
    """
    path = workdir / "config.json"
    content = {"config": config, "data": data}
    if path.exists():
        old = _settled(workdir)
        allowed = [key for key in free if key != "data.root" or old["data"] == data]
        changed = changed_keys({**defaults, **old["config"]}, config, allowed)
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
    write_json(path, content)


def changed_keys(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str]
) -> list[str]:
    """'key: old → new' of each dotted key that differs and is not allowed to."""
    return [
        f"{key}: {before.get(key)!r} → {now.get(key)!r}"
        for key in sorted(now.keys() | before.keys())
        if key not in allowed and before.get(key) != now.get(key)
    ]


def begun(workdir: Path) -> bool:
    """Whether there is a checkpoint to go on from; the pretrained weights are not asked for then."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def provenance(devices: list[Any]) -> dict[str, Any]:
    """Date, command, versions, git state and devices, for run.json."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *_typed()]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_state(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in devices],
        "host_cores": os.cpu_count(),
    }


def read_json(path: Path) -> Any:
    """Raises UserError naming the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it or delete it") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, less one that a kill has cut short; none where there is no such file.

    Raises:
      UserError: another line is not JSON.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            found += [json.loads(line)] if line else []
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({error}); restore the file, or delete the line"
            ) from error
    return found


def read_config(workdir: Path) -> dict[str, Any]:
    """Dotted key → value, as `settle_config` wrote it. Raises UserError where config.json has another form."""
    config: dict[str, Any] = _settled(workdir)["config"]
    return config


def _settled(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    content = read_json(path)
    if not isinstance(content, dict) or not {"config", "data"} <= content.keys():
        raise UserError(
            f"{path} is not of this version's form; go on with the version that wrote it, or choose another "
            "folder with --workdir=…"
        )
    return content


def write_json(path: Path, content: Any) -> None:
    """Valid JSON in the dict's own order, whole or not at all. Raises ValueError, naming the file, on NaN."""
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be written as JSON: {error}") from error
    atomic.write_text(path, text + "\n")


def _typed() -> list[str]:
    """The command line after `python`: the module's name where `python -m` was typed, not the path of its file."""
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
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
