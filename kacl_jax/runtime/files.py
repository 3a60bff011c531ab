"""A file is there whole or not at all, also after a crash or on a full disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kacl_jax.runtime.errors import UserError


def write_text(
    path: Path, text: str, *, fix: str = "make room there or give another --workdir"
) -> None:
    """UTF-8, line ends as they are; synced to the disk before it takes the old file's place.

    Raises:
      UserError: it cannot be written; what was there stays. `fix` ends the sentence.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it could not even be made
            part.unlink()
        raise UserError(f"{path} cannot be written ({error.strerror}); {fix}") from error
