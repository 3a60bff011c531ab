"""Made images and tables for the tests of kacl_jax.convert, and the command as a function."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kacl_jax.convert.__main__ import main

WIDTH, HEIGHT = 200, 120


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    grey = np.arange(width * height, dtype=np.int64).reshape(height, width) % 251
    Image.fromarray(grey.astype(np.uint8)).save(path, **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes()
    assert text.endswith(b"\n")
    assert b"\r" not in text
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def convert(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def write_table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in (header, *rows)), encoding="utf-8")
    return path


def refusal(arguments: Sequence[object], capsys: pytest.CaptureFixture[str], out: Path) -> str:
    """The message of a command that must be refused, and must leave nothing."""
    beside = set(out.parent.iterdir())
    assert convert(*arguments) == 1
    assert set(out.parent.iterdir()) == beside
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Error: ")
    return printed.err
