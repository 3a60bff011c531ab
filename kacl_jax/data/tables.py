"""What the text files of a data root say, in whichever layout they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from kacl_jax.data import image_names
from kacl_jax.data.findings import FINDINGS_14
from kacl_jax.data.problems import Problems
from kacl_jax.data.text_files import find_plain_or_gz, read_text, report_absent

NIH_SIDE = 1024  # NIH's boxes are in pixels of a 1024 × 1024 frame, whatever the file's size
CHECK_SIDE = 320  # pixels of a side of a picture in check.png
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """One image's row in the label file."""

    patient: str
    labels: frozenset[str]
    age: int
    sex: str
    view: str
    unknown: frozenset[str] = frozenset()  # findings whose label is not known


@dataclass
class Tables:
    """The content of a root's text files. A line that cannot be parsed is left out here and becomes a Problem."""

    root: Path
    rows: dict[str, Row] = field(default_factory=dict)
    # Names of images with a row in the label file, even a wrong row.
    labelled_images: set[str] = field(default_factory=set)
    # (image, finding) → x, y, w, h of each box, in pixels of NIH's frame or, if `own_frames`, of the image's file.
    boxes: dict[tuple[str, str], list[tuple[float, ...]]] = field(default_factory=dict)
    own_frames: bool = False
    lists: dict[str, set[str]] = field(default_factory=dict)  # empty in a root without a split
    list_names: tuple[str, str] = ("train", "test")  # keys of `lists`
    checksums: dict[str, str] = field(default_factory=dict)
    label_file: str = ""
    box_file: str = ""
    findings: tuple[str, ...] = FINDINGS_14  # that the label file knows

    @cached_property
    def spellings(self) -> image_names.Spellings:
        """Of the labelled images."""
        return image_names.Spellings(self.labelled_images)


@dataclass(frozen=True)
class RootCheck:
    """A check of a whole root: what its tables say, where mistakes are reported, and who hears how far it is.

    broken_file_problems: for image files that cannot be read. progress: called with (images done, images in all).
    sample: names of images whose picture is wanted; the store puts it into `pictures`, uint8 [CHECK_SIDE CHECK_SIDE].
    sizes: the store puts (width, height) of every original file there, where it knows them.
    """

    tables: Tables
    problems: Problems
    broken_file_problems: Problems
    progress: Progress | None = None
    sample: frozenset[str] = frozenset()
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_table(name: str, tables: Tables, problems: Problems) -> str | None:
    """The text of a file of the root, plain or .gz, and its checksum in `tables`; None with a Problem."""
    path = find_plain_or_gz(tables.root, name)
    if path is None:
        report_absent(tables.root, [name], problems)
        return None
    content = read_text(path, problems)
    if content is None:
        return None
    text, tables.checksums[name] = content
    return text


def parse_xywh(sides: Sequence[str]) -> tuple[float, ...] | None:
    """Four plain decimal numbers with w and h above 0, or None."""
    if not all(_NUMBER.fullmatch(side) for side in sides):
        return None
    xywh = tuple(float(side) for side in sides)
    return xywh if all(map(math.isfinite, xywh)) and min(xywh[2:]) > 0 else None


def report_unlabelled(
    file: str, image: str, where: str, tables: Tables, problems: Problems
) -> str | None:
    """Adds the Problem of a name without a label row. Returns the image that the name means, if that is clear."""
    meant, labels = tables.spellings.meant(image), tables.label_file
    if meant is None:
        fix = f"add its row to {labels}, or use the {file} that belongs to {labels}"
        problems.add(file, "names an image that has no label row", fix, where)
    else:
        what = f"writes an image name {image_names.difference(image, meant)}"
        fix = f"write each name as {labels} does"
        problems.add(file, what, fix, f"{where}: {meant}")
    return meant
