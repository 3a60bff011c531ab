"""The folder of a run: its lock, who uses it, and whether it has a checkpoint."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kacl_jax.runtime.errors import UserError, WorkdirInUseError


@contextmanager
def lock_workdir(workdir: Path, *, hold: bool = True, option: str = "--workdir") -> Iterator[None]:
    """Lock the workdir for this process. The kernel releases the lock however the process ends.

    hold: False for a process whose process 0 holds the lock. The folder is then only created.
    option: of the command, which names another folder.

    Raises:
      UserError: the folder is in a bucket, or cannot be made or written.
      WorkdirInUseError: another process holds it.
    """
    if bucket := re.search("[a-z][a-z0-9]+:/+(.*)", str(workdir)):
        raise UserError(
            f"{option} names a bucket ({bucket[1]}), where a run can neither lock nor append to its files. Choose a "
            "folder on a disk. Copy it when the run is done, for example with gcloud storage cp -r"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("wb")
    except OSError as error:
        raise UserError(
            f"The folder {workdir} cannot be written ({error}); choose another with {option}=…"
        ) from error
    with lock:
        try:
            if hold:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirInUseError(
                f"Another process uses {workdir}; wait for it, or choose another folder with {option}=…"
            ) from error
        except OSError as error:
            raise UserError(
                f"The file system of {workdir} cannot lock files ({error}), so two runs could write there at once; "
                f"choose a folder elsewhere with {option}=…"
            ) from error
        yield


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """The steps of a run's checkpoints, ascending. A checkpoint is a folder whose name is its step."""
    if not checkpoints.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in checkpoints.iterdir()
        if re.fullmatch("[0-9]{8,9}", path.name) and path.is_dir()
    )


def is_in_use(workdir: Path) -> bool:
    """Whether another process holds the workdir's lock. Raises UserError as `lock_workdir`."""
    if not (workdir / ".lock").exists():
        return False
    try:
        with lock_workdir(workdir):
            return False
    except WorkdirInUseError:
        return True


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is a checkpoint to resume from. Then the pretrained weights are not needed."""
    return bool(checkpoint_steps(workdir / "checkpoints"))
