"""Files that appear whole or not at all, on a disk or in a bucket."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from kacl_jax.runtime.errors import UserError

_DRAFT = "draft-"


def opened(path: str, flag: str) -> epath.Path:
    """The folder or bucket path that was given by `flag`, absolute.

    Raises:
        UserError: nobody can open such a path here.
    """
    if not is_bucket(path):
        return epath.Path(Path(path).expanduser().absolute())
    try:
        found = epath.Path(path)
        found.exists()
    except ImportError as error:
        raise UserError(
            f"{flag}={path} needs a driver that is not installed: {error} (pip install)"
        ) from error
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{flag}={path} is no path that can be opened; give a folder or gs://BUCKET/FOLDER"
        ) from error
    return found


def is_bucket(path: Any) -> bool:
    return "://" in str(path)


@contextmanager
def draft(folder: epath.Path) -> Iterator[Path]:
    """A local file to write, to be published into `folder` or below its disk; gone afterwards."""
    where = None if is_bucket(folder) else folder
    with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=where) as name:
        yield Path(name) / "draft"


def remove_drafts(folder: epath.Path) -> None:
    """What a killed process left."""
    if not is_bucket(folder):
        for left in Path(folder).glob(f"{_DRAFT}*"):
            shutil.rmtree(left)


def publish(written: Path, target: epath.Path) -> None:
    """Gives a finished draft its name, at once; on a disk it is safe there afterwards."""
    if is_bucket(target):
        epath.Path(written).copy(target, overwrite=True)
        return
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.replace(target)


def write_text(target: epath.Path, text: str, folder: epath.Path) -> None:
    """`text` as the file `target`; drafted in `folder`."""
    with draft(folder) as file:
        file.write_text(text)
        publish(file, target)


def same_content(source: epath.Path, target: epath.Path) -> None:
    """`target` as another name of `source` where the disk has links, else as a copy."""
    if not is_bucket(target):
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # a disk without links: below
    source.copy(target)
