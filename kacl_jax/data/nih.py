"""NIH ChestX-ray14 as people have it on disk → Records.

Layout under the root: `images/` or `images_001/images` … `images_012/images`, `Data_Entry_2017.csv`
or `Data_Entry_2017_v2020.csv`, `BBox_List_2017.csv`, `train_val_list.txt`, `test_list.txt`; each
of the four plain or as .gz.
Everything that is wrong with the root is collected as `Problem`s and told at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kacl_jax.data.image import RESIZE_NAME, BrokenImage, read_image, resize
from kacl_jax.data.tables import (
    BOX_FILE,
    FINDINGS_8,
    FINDINGS_14,
    LIST_FILES,
    Problem,
    Problems,
    Tables,
    read_tables,
)
from kacl_jax.errors import UserError

__all__ = [
    "FINDINGS_8", "FINDINGS_14", "RESIZE_NAME", "BrokenImage", "Problem", "Records",
    "from_nih_pixels", "read_image", "read_records", "resize", "to_nih_pixels",
]  # fmt: skip

_NIH_SIDE = 1024  # every box in BBox_List_2017.csv is in this frame, whatever the file's size


@dataclass(frozen=True, eq=False)
class Records:
    """What the root says about each of its n images; an image id is an index into these arrays."""

    root: Path
    names: np.ndarray  # [n] str, sorted
    paths: tuple[Path, ...]  # one per image
    patients: np.ndarray  # [n] int64
    labels: np.ndarray  # [n c] uint8, 1 = the finding is named
    boxes: np.ndarray  # [n c 4] float32 (x0, y0, x1, y1), fractions of the side; 0 where none
    has_box: np.ndarray  # [n c] bool
    official_test: np.ndarray  # [n] bool: in test_list.txt, else in train_val_list.txt
    findings: tuple[str, ...]
    sex: np.ndarray  # [n] str, as written ('M', 'F')
    age: np.ndarray  # [n] int64 years; -1 where blank, unreadable or impossible
    view: np.ndarray  # [n] str ('PA', 'AP')
    checksums: dict[str, str]  # file name without .gz -> sha256 of its unpacked content
    missing: tuple[str, ...]  # names left out because of allow_missing


def from_nih_pixels(xywh: np.ndarray) -> np.ndarray:
    """(x, y, w, h) [… 4] in NIH's 1024-pixel frame → box float32 [… 4] in fractions."""
    xywh = np.asarray(xywh, np.float64)
    low, size = xywh[..., :2], xywh[..., 2:]
    return (np.concatenate([low, low + size], -1) / _NIH_SIDE).astype(np.float32)


def to_nih_pixels(box: np.ndarray) -> np.ndarray:
    """Box [… 4] in fractions → (x, y, w, h) float64 [… 4] in NIH's 1024-pixel frame."""
    box = np.asarray(box, np.float64) * _NIH_SIDE
    return np.concatenate([box[..., :2], box[..., 2:] - box[..., :2]], -1)


def read_records(
    root: Path | str,
    *,
    findings: int = 8,
    allow_missing: bool = False,
    check_images: bool = True,
) -> Records:
    """Reads labels, boxes, lists and the places of the images; opens no image.

    With `findings=8` NIH's six other findings are legal labels without a column.
    With `check_images=False` only the metadata are read: no file is looked for (`paths` are where
    `images/` would have them). With `allow_missing` images without a file are left out.

    Raises:
        UserError: every problem of the root at once, each with file, rows, count and fix.
    """
    problems = Problems()
    tables = read_root(root, problems)
    files: dict[str, Path] = {}
    if check_images:
        files = find_images(tables.root, problems)
        absent = [name for name in tables.rows if name not in files]
        if absent and not allow_missing:
            report_missing(absent, len(tables.rows), problems)
    found = problems.all()
    if found:
        raise UserError(f"{tables.root}: {len(found)} problem(s)\n" + "\n".join(map(str, found)))
    kept = [name for name in sorted(tables.rows) if not check_images or name in files]
    if not kept:
        raise UserError(f"{tables.root}: none of the {len(tables.rows)} images is there")
    paths = tuple(files.get(name, tables.root / "images" / name) for name in kept)
    missing = tuple(sorted(set(tables.rows) - set(kept)))
    return _records(tables, kept, paths, missing, findings_of(findings))


def findings_of(count: int) -> tuple[str, ...]:
    """The names of the 8 boxed findings or of all 14."""
    named = {8: FINDINGS_8, 14: FINDINGS_14}
    if count not in named:
        raise UserError(f"--config.data.findings must be 8 or 14, not {count!r}")
    return named[count]


def read_root(root: Path | str, problems: Problems) -> Tables:
    """The four text files, parsed and held against each other and against NIH's frame."""
    tables = read_tables(root, problems)
    for (image, finding), (x, y, w, h) in tables.boxes.items():
        if min(x, y) < 0 or max(x + w, y + h) > _NIH_SIDE:
            fix = f"give x, y, w, h in NIH's {_NIH_SIDE} x {_NIH_SIDE} frame, whatever the file's size"
            example = f"{image} {finding} ({x:g}, {y:g}, {w:g}, {h:g})"
            problems.add(BOX_FILE, "a box leaves the image", fix, example)
    return tables


def find_images(root: Path, problems: Problems) -> dict[str, Path]:
    """File name → path of everything in the image folders, each listed once (no stat per file)."""
    folders = [root / "images", *sorted(root.glob("images_[0-9][0-9][0-9]/images"))]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        what = f"is not in {root} (nor images_001/images …)"
        problems.add("images/", what, "put the PNG files there")
    files: dict[str, Path] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            if name in files:
                fix = "keep one of the two files"
                problems.add(f"{folder.relative_to(root)}/", "has a file that lies elsewhere too",
                             fix, f"{name} (also {files[name]})")  # fmt: skip
            files.setdefault(name, folder / name)
    return files


def report_missing(absent: Sequence[str], total: int, problems: Problems) -> None:
    """Adds the Problem of images that have labels and no file."""
    fix = "add the files, or train on what is there with --config.data.allow_missing=True"
    for name in absent:
        problems.add("images/", f"of {total} images {len(absent)} are missing", fix, name)


def _records(
    tables: Tables,
    names: Sequence[str],
    paths: tuple[Path, ...],
    missing: tuple[str, ...],
    findings: tuple[str, ...],
) -> Records:
    rows = [tables.rows[name] for name in names]
    index = {name: i for i, name in enumerate(names)}
    column = {finding: j for j, finding in enumerate(findings)}
    lines = {labels: [f in labels for f in findings] for labels in {row.labels for row in rows}}
    xywh = np.zeros((len(names), len(findings), 4), np.float64)
    has_box = np.zeros(xywh.shape[:2], bool)
    for (image, finding), sides in tables.boxes.items():
        if image in index and finding in column:
            at = index[image], column[finding]
            xywh[at], has_box[at] = sides, True
    test = tables.lists[LIST_FILES[1]]
    return Records(
        root=tables.root,
        names=np.array(names, dtype=np.str_),
        paths=paths,
        patients=np.array([row.patient for row in rows], np.int64),
        labels=np.array([lines[row.labels] for row in rows], np.uint8),
        boxes=from_nih_pixels(xywh),
        has_box=has_box,
        official_test=np.array([name in test for name in names], bool),
        findings=findings,
        sex=np.array([row.sex for row in rows], np.str_),
        age=np.array([row.age for row in rows], np.int64),
        view=np.array([row.view for row in rows], np.str_),
        checksums=dict(tables.checksums),
        missing=missing,
    )
