"""NIH ChestX-ray14 as people have it on disk → Records.

Layout under the root: `images/` or `images_001/images` … `images_012/images`, `Data_Entry_2017.csv`
or `Data_Entry_2017_v2020.csv`, `BBox_List_2017.csv`, `train_val_list.txt`, `test_list.txt`; each
of the four plain or as .gz.
A prepared root (prepared.py) holds the same text files, and records in place of the PNG files.
Everything that is wrong with the root is collected as `Problem`s and told at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kacl_jax.data.image_source import Images, PngFiles, PngFolder, find_png_files
from kacl_jax.data.prepared.reader import Prepared, is_prepared
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
from kacl_jax.images.reader import BrokenImage, read_image
from kacl_jax.images.resize import RESIZE_NAME, resize
from kacl_jax.runtime.errors import UserError

__all__ = [
    "FINDINGS_8", "FINDINGS_14", "RESIZE_NAME", "BrokenImage", "PngFiles", "Problem", "Records",
    "from_nih_pixels", "read_image", "read_records", "resize", "to_nih_pixels",
]  # fmt: skip

NIH_SIDE = 1024  # every box in BBox_List_2017.csv is in this frame, whatever the file's size
LEAST_SIDE = 8  # px of it; NIH's smallest box has 21, a cell of prior_map's raster 4


@dataclass(frozen=True, eq=False)
class Records:
    """What the root says about each of its n images; an image id is an index into these arrays."""

    root: Path
    names: np.ndarray  # [n] str, sorted
    images: Images  # its pictures
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
    return (np.concatenate([low, low + size], -1) / NIH_SIDE).astype(np.float32)


def to_nih_pixels(box: np.ndarray) -> np.ndarray:
    """Box [… 4] in fractions → (x, y, w, h) float64 [… 4] in NIH's 1024-pixel frame."""
    box = np.asarray(box, np.float64) * NIH_SIDE
    return np.concatenate([box[..., :2], box[..., 2:] - box[..., :2]], -1)


def read_records(
    root: Path | str,
    *,
    findings: int = 8,
    allow_missing: bool = False,
    check_images: bool = True,
    image_size: int | None = None,
) -> Records:
    """Reads labels, boxes, lists and the places of the images; opens no image.

    With `findings=8` NIH's six other findings are legal labels without a column.
    With `check_images=False` only the metadata are read: no file is looked for (`images` expects
    them in `images/`). With `allow_missing` images without a file are left out.
    `image_size` is the side in pixels at which they will be read: a root that was prepared at
    another size has a checksum more, because its pictures are others then.

    Raises:
        UserError: every problem of the root at once, each with file, rows, count and fix.
    """
    problems = Problems()
    tables = read_root(root, problems)
    store = find_images(tables.root, problems) if check_images else PngFolder(tables.root, {})
    absent = [name for name in tables.rows if name not in store] if check_images else []
    if absent and not allow_missing:
        report_missing(absent, len(tables.rows), problems)
    found = problems.all()
    if found:
        raise UserError(f"{tables.root}: {len(found)} problem(s)\n" + "\n".join(map(str, found)))
    kept = sorted(set(tables.rows).difference(absent))
    if not kept:
        raise UserError(f"{tables.root}: none of the {len(tables.rows)} images is there")
    checksums = tables.checksums | store.checksums(image_size)
    missing = tuple(sorted(absent))
    return _records(tables, kept, store.select(kept), checksums, missing, findings_of(findings))


def findings_of(count: int) -> tuple[str, ...]:
    """The names of the 8 boxed findings or of all 14."""
    named = {8: FINDINGS_8, 14: FINDINGS_14}
    if count not in named:
        raise UserError(f"--config.data.findings must be 8 or 14, not {count!r}")
    return named[count]


def read_root(root: Path | str, problems: Problems) -> Tables:
    """The four text files, parsed and held against each other and against NIH's frame."""
    is_prepared(Path(root).expanduser())  # an unfinished one may have no text files yet
    tables = read_tables(root, problems)
    for (image, finding), (x, y, w, h) in tables.boxes.items():
        if min(x, y) < 0 or max(x + w, y + h) > NIH_SIDE:
            fix = (
                f"give x, y, w, h in NIH's {NIH_SIDE} x {NIH_SIDE} frame, whatever the file's size"
            )
            example = f"{image} {finding} ({x:g}, {y:g}, {w:g}, {h:g})"
            problems.add(BOX_FILE, "a box leaves the image", fix, example)
        elif min(w, h) < LEAST_SIDE:
            fix = f"give x, y, w, h in pixels of NIH's {NIH_SIDE} x {NIH_SIDE} frame, not in fractions, or delete it"
            example = f"{image} {finding} ({x:g}, {y:g}, {w:g}, {h:g})"
            problems.add(BOX_FILE, f"a box has a side under {LEAST_SIDE} px", fix, example)
    return tables


def find_images(root: Path, problems: Problems) -> PngFolder | Prepared:
    """The pictures of either form of a root; what is wrong with them as a whole is added."""
    if is_prepared(root):
        return Prepared(root, problems)
    return PngFolder(root, find_png_files(root, problems))


def report_missing(absent: Sequence[str], total: int, problems: Problems) -> None:
    """Adds the Problem of images that have labels and no file."""
    fix = (
        "add the files, or train on what is there with --config.data.allow_missing=True "
        "(kacl_jax.prepare: --allow_missing)"
    )
    for name in absent:
        problems.add("images/", f"of {total} images {len(absent)} are missing", fix, name)


def _records(
    tables: Tables,
    names: Sequence[str],
    images: Images,
    checksums: dict[str, str],
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
        images=images,
        patients=np.array([row.patient for row in rows], np.int64),
        labels=np.array([lines[row.labels] for row in rows], np.uint8),
        boxes=from_nih_pixels(xywh),
        has_box=has_box,
        official_test=np.array([name in test for name in names], bool),
        findings=findings,
        sex=np.array([row.sex for row in rows], np.str_),
        age=np.array([row.age for row in rows], np.int64),
        view=np.array([row.view for row in rows], np.str_),
        checksums=checksums,
        missing=missing,
    )
