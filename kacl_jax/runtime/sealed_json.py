"""Small JSON files with a digest of their content, so that damage is told instead of used."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all. Raises ValueError, naming the file, on NaN."""
    files.write_json(path, {**content, "digest": _digest(content)})


def read_sealed(path: Path, fix: str) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
      UserError: the file is missing, damaged or something else; `fix` ends the sentence.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {fix}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        intact = content.pop("digest") == _digest(content)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); {fix}") from error
    if not intact:
        raise UserError(f"{path} is damaged: its content does not match its digest; {fix}")
    return content


def encode_float32(array: np.ndarray) -> str:
    """The bytes of an array as text."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def decode_float32(text: str) -> np.ndarray:
    """float32 [n] from `encode_float32`."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
