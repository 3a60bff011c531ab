"""Publishes complete files, on a disk or in a bucket: a reader never sees a half-written file."""

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

_DRAFT_PREFIX = "draft-"


def open_folder(path: str, flag: str) -> epath.Path:
    """The absolute folder or bucket path for `path`, which the user typed after `flag`.

    Raises:
        UserError: no installed driver can open this kind of path.
    """
    if not is_bucket_path(path):
        return epath.Path(Path(path).expanduser().absolute())
    try:
        folder = epath.Path(path)
        folder.exists()  # raises if no driver can open this kind of path
    except ImportError as error:
        raise UserError(
            f"{flag}={path} needs a package that is not installed ({error}); install it with pip"
        ) from error
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{flag}={path} cannot be opened; give a folder or gs://BUCKET/FOLDER"
        ) from error
    return folder


def is_bucket_path(path: Any) -> bool:
    return "://" in str(path)


@contextmanager
def open_draft(folder: epath.Path) -> Iterator[Path]:
    """The path of a temporary local file; whoever writes it calls `publish` to keep it.

    It lies inside `folder`, so that publishing on the same disk is a rename; for a bucket it lies in the system's
    temporary folder. It is deleted at the end of the `with` block.
    """
    parent = None if is_bucket_path(folder) else folder
    with tempfile.TemporaryDirectory(prefix=_DRAFT_PREFIX, dir=parent) as name:
        yield Path(name) / "draft"


def remove_drafts(folder: epath.Path) -> None:
    """Deletes the drafts of killed processes in `folder`."""
    if not is_bucket_path(folder):
        for draft_folder in Path(folder).glob(f"{_DRAFT_PREFIX}*"):
            shutil.rmtree(draft_folder)


def publish(draft: Path, target: epath.Path) -> None:
    """Moves a complete draft to `target` in one step; on a disk its content survives a power cut afterwards."""
    if is_bucket_path(target):
        epath.Path(draft).copy(target, overwrite=True)
        return
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(target)


def publish_text(target: epath.Path, text: str, folder: epath.Path) -> None:
    """Writes `text` to the file `target`; its draft lies in `folder`."""
    with open_draft(folder) as draft:
        draft.write_text(text, encoding="utf-8")
        publish(draft, target)


def link_or_copy(source: epath.Path, target: epath.Path) -> None:
    """Makes `target` a hard link to `source` where the disk supports links, else a copy."""
    if not is_bucket_path(target):
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # this disk has no hard links: copy instead
    source.copy(target)
