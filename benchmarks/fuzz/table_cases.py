"""Cases of changed text files: their values must come out, they must be refused, or the strict parser decides."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.fuzz import strict
from benchmarks.fuzz.judge import Answer, Case
from benchmarks.fuzz.roots import (
    BOXES,
    LABELS,
    NAMES,
    TEST,
    TRAIN_VAL,
    doors,
    either_case,
    images,
    refused_case,
    same_case,
    write_root,
)

Files = dict[str, bytes]
ALL_FILES = (LABELS, BOXES, TRAIN_VAL, TEST)
NAME, LABEL, PATIENT, AGE, SEX, VIEW = 0, 1, 3, 4, 5, 6  # columns of the label table


class Layout(NamedTuple):
    """A kind of root: its strict parser, the doors of the program, and its image files."""

    read: Callable[[Files], np.ndarray]
    doors: Callable[[Path, np.ndarray | None], Answer]
    images: Callable[[], Files]


NIH = Layout(lambda files: strict.read(files, NAMES), doors, images)


def readable(files: Files, layout: Layout = NIH) -> np.ndarray | None:
    """What may come out, or None if the files must be refused."""
    try:
        return layout.read(files)
    except strict.Refused:
        return None


def must_read(
    what: str,
    folder: Path,
    files: Files,
    truth: np.ndarray,
    pictures: Files | None = None,
    layout: Layout = NIH,
) -> Case:
    root = write_root(folder, files, pictures or layout.images())
    return same_case(what, lambda: layout.doors(root, truth), truth)


def must_refuse(
    what: str,
    folder: Path,
    files: Files,
    must_say: str,
    pictures: Files | None = None,
    layout: Layout = NIH,
) -> Case:
    """must_say: a regular expression for the file and the line. The strict parser must refuse the files, too."""
    if readable(files, layout) is not None:
        raise AssertionError(f"the strict parser reads it: {what}")
    root = write_root(folder, files, pictures or layout.images())
    return refused_case(what, lambda: layout.doors(root, None), must_say)


def by_strict(what: str, folder: Path, files: Files, layout: Layout = NIH) -> Case:
    """Values as the strict parser reads them or a sentence; a sentence where that refuses."""
    truth = readable(files, layout)
    root = write_root(folder, files, layout.images())
    if truth is None:
        return refused_case(what, lambda: layout.doors(root, None))
    return either_case(what, lambda: layout.doors(root, truth), truth)


def line_of(file: str, number: int, *others: str) -> str:
    """A regular expression: the sentence names the file, and the line, or one of the others."""
    places = (rf"\b{number}\b", *map(re.escape, filter(None, others)))
    return rf"{re.escape(file)}.*({'|'.join(places)})"
