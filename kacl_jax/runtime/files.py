"""Text and JSON files: written completely or not at all, also after a crash or on a full disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from kacl_jax.runtime.errors import UserError


def write_text(
    path: Path, text: str, *, fix: str = "free some disk space or give another --workdir"
) -> None:
    """UTF-8, line ends as they are; synced to the disk before it takes the old file's place.

    Raises:
      UserError: it cannot be written; what was there stays. `fix` ends the sentence.
    """
    write_bytes(path, text.encode(), fix=fix)


def write_bytes(
    path: Path, content: bytes, *, fix: str = "free some disk space or give another --workdir"
) -> None:
    """As `write_text`."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it could not even be made
            part.unlink()
        raise UserError(f"{path} cannot be written ({error.strerror}); {fix}") from error


def write_json(path: Path, content: Any) -> None:
    """Valid JSON in the dict's own order, whole or not at all. Raises ValueError, naming the file, on NaN."""
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be written as JSON: {error}") from error
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError naming the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it or delete it") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last line that a kill has cut short. No file gives no lines.

    Raises:
      UserError: another line is not a JSON object with a whole number `step`, a text `kind`, and else numbers or null.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); restore it or delete it"
        ) from error
    lines = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        if line:
            try:
                lines.append(_metric_line(line))
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number}: {error}; restore the file, or delete the line"
                ) from error
    return lines


def _metric_line(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(content, dict) or (type(content.get("step")), type(content.get("kind"))) != (
        int,
        str,
    ):
        raise ValueError("not an object with a step and a kind")
    if texts := [
        k for k, v in content.items() if not isinstance(v, int | float | None) and k != "kind"
    ]:
        raise ValueError(f"{texts[0]} is no number")
    return content


def file_sha256(path: Any) -> str:
    """The sha256 of a file's content in hex; `path` is a pathlib or an epath path."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def user_cache_folder() -> Path:
    """Where this user's downloads and compiled programs are kept: kacl_jax in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kacl_jax"
