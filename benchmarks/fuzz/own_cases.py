"""Cases of a root in the simple layout: its strict parser, its doors, and files whose values are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.fuzz import own_strict
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.own_roots import COLUMNS, SIZES, images, own_doors
from benchmarks.fuzz.table_cases import Files, Layout, must_read

IMAGE, PATIENT, SPLIT, SEX, AGE, VIEW, FIRST_FINDING = range(len(COLUMNS) + 1)


def own_layout(uncertain: str = "ignore") -> Layout:
    return Layout(
        lambda files: own_strict.read(files, SIZES, uncertain),
        lambda root, truth: own_doors(root, truth, uncertain),
        images,
    )


OWN = own_layout()


def must_read_own(
    what: str, folder: Path, files: Files, meant: Files, layout: Layout = OWN, **more: Files
) -> Case:
    """The values of the files `meant` must come out of `files`. So says the strict parser, too."""
    truth = OWN.read(meant)
    if not np.array_equal(truth, layout.read(files)):
        raise AssertionError(f"the strict parser reads other values: {what}")
    return must_read(what, folder, files, truth, layout=layout, **more)
