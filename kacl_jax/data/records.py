"""Reads a data root, in NIH's layout or in the simple one (own_tables.py), into Records.

NIH's layout under the root: `images/` or `images_001/images` … `images_012/images`, `Data_Entry_2017.csv`
or `Data_Entry_2017_v2020.csv`, `BBox_List_2017.csv`, `train_val_list.txt`, `test_list.txt`; each
of these four text files plain or as .gz.
A prepared root (prepared/reader.py) has the same text files, and records instead of PNG files.
Every mistake in the root becomes a `Problem`, and one error message lists all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kacl_jax.data.box_checks import check_nih_boxes, check_own_boxes
from kacl_jax.data.findings import FINDINGS_8, FINDINGS_14, UNKNOWN_LABEL
from kacl_jax.data.image_names import Spellings, difference
from kacl_jax.data.image_source import Images, ImageStore, open_image_store
from kacl_jax.data.layouts import read_tables
from kacl_jax.data.png_folder import PngFolder
from kacl_jax.data.prepared.reader import is_prepared
from kacl_jax.data.problems import Problems
from kacl_jax.data.tables import NIH_SIDE, Tables
from kacl_jax.images.reader import MAX_MEGAPIXELS
from kacl_jax.runtime.errors import UserError


@dataclass(frozen=True, eq=False)
class Records:
    """Labels, boxes and metadata of the n images of a root; an image id is an index into these arrays."""

    root: Path
    names: np.ndarray  # [n] str, sorted
    images: Images  # the pictures
    patients: (
        np.ndarray
    )  # [n] int64: NIH's number, or the place of the patient's name among all names
    patient_names: np.ndarray  # [n] str, as in the label file
    labels: np.ndarray  # [n c] int8: 1, 0, or UNKNOWN_LABEL, which counts in no loss and no number
    # [n c k 4] float32 (x0, y0, x1, y1), fractions of a side. k: the most boxes of an image and finding in the root,
    # but at least 1. The boxes come first, zeros fill the other places.
    boxes: np.ndarray
    has_box: np.ndarray  # [n c] bool: at least one box
    official_test: (
        np.ndarray | None
    )  # [n] bool: True in test_list.txt, False in train_val_list.txt; None: no split
    findings: tuple[str, ...]
    sex: np.ndarray  # [n] str as in the label file ('M', 'F')
    age: np.ndarray  # [n] int64 years; -1 where blank, unreadable or impossible
    view: np.ndarray  # [n] str ('PA', 'AP')
    checksums: dict[str, str]  # file name without .gz -> sha256 of its unpacked content
    missing: tuple[str, ...]  # names of images without a file, left out by allow_missing

    @property
    def is_box(self) -> np.ndarray:
        """[n c k] bool: which places of `boxes` hold a box."""
        return np.asarray((self.boxes[..., 2:] > self.boxes[..., :2]).all(axis=-1))


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
    findings: int | str = 8,
    uncertain: str = "refuse",
    allow_missing: bool = False,
    check_images: bool = True,
    image_size: int | None = None,
    max_megapixels: int = MAX_MEGAPIXELS,
) -> Records:
    """Reads labels, boxes and lists, and finds the image files; opens no image.

    With `findings=8` NIH's six other findings are valid labels but get no column.
    With `check_images=False` it reads only the text files and looks for no image file (`images`
    then expects all of them in `images/`). With `allow_missing` images without a file are left out.
    `image_size` is the side in pixels at which the pictures will be read. A root that was prepared
    at another size gets one more checksum, because its pictures differ then. `max_megapixels`: a file
    with more pixels counts as broken when it is read.

    Raises:
        UserError: the root has problems; the message lists all of them with file, rows, count and fix.
    """
    problems = Problems()
    tables = read_checked_tables(root, problems, uncertain)
    chosen = finding_names(findings, tables)
    store = (
        open_image_store(tables.root, problems, max_megapixels)
        if check_images
        else PngFolder(tables.root, {}, max_megapixels)
    )
    missing = (
        missing_images(tables, store, problems, Problems() if allow_missing else problems)
        if check_images
        else []
    )
    sizes: dict[str, tuple[int, int]] = {}
    if tables.own_frames and check_images:
        boxed = {image for image, _ in tables.boxes if image in store}
        sizes = {image: size for image in boxed if (size := store.size(image)) is not None}
        check_own_boxes(tables, sizes, problems)
    listed = problems.all()
    if listed:
        raise UserError(f"{tables.root}: {len(listed)} problem(s)\n" + "\n".join(map(str, listed)))
    names = sorted(set(tables.rows).difference(missing))
    if not names:
        raise UserError(f"{tables.root} has none of the {len(tables.rows)} image files")
    checksums = tables.checksums | store.checksums(image_size)
    return _build_records(
        tables,
        names,
        store.select(names),
        checksums,
        tuple(sorted(missing)),
        chosen,
        sizes,
    )


def finding_names(chosen: int | str, tables: Tables) -> tuple[str, ...]:
    """The findings that a run looks for: NIH's 8 with boxes or all 14, 'all' of the label file, or names with commas.

    Raises:
        UserError: the label file does not know one of them.
    """
    if chosen == "all" or not tables.findings:  # a Problem says why the label file has none
        return tables.findings
    numbered = {8: FINDINGS_8, 14: FINDINGS_14}
    names = tuple(chosen.split(",")) if isinstance(chosen, str) else numbered.get(chosen, ())
    unknown = [name for name in names if name not in tables.findings]
    if not names or unknown or len(set(names)) < len(names):
        raise UserError(
            f"--config.data.findings={chosen} does not fit {tables.root / tables.label_file}, which has "
            f"{', '.join(tables.findings) or 'no finding'}; give all, or some of these names with commas between"
        )
    return names


def read_checked_tables(root: Path | str, problems: Problems, uncertain: str = "refuse") -> Tables:
    """Parses the text files and checks them against each other, and NIH's boxes against NIH's frame."""
    # Raises for an unfinished prepared root, which may have no text files yet.
    is_prepared(Path(root).expanduser())
    tables = read_tables(root, problems, uncertain)
    if not tables.own_frames:
        check_nih_boxes(tables, problems)
    return tables


def missing_images(
    tables: Tables,
    store: ImageStore,
    problems: Problems,
    missing_problems: Problems,
) -> list[str]:
    """The names of images that have labels but no file; they become Problems in `missing_problems`.

    A file that is there under another spelling of the name always becomes a Problem in `problems`.
    """
    missing = [name for name in tables.rows if name not in store]
    spellings = Spellings(store.names()) if missing else None
    absent = []
    for name in missing:
        meant = spellings.meant(name) if spellings else None
        if meant is None or meant in tables.rows:
            absent.append(name)
        else:
            what = f"the tables write the name of a file {difference(name, meant)}"
            fix = "write the names in all tables as the files have them, or rename the files"
            problems.add("images/", what, fix, f"{name}: the file is {meant}")
    fix = (
        "add the files, or train on what is there with --config.data.allow_missing=True "
        "(kacl_jax.prepare: --allow_missing)"
        if len(absent) < len(tables.rows)
        else "put the image files there under the names that the tables give"
    )
    for name in absent:
        what = f"of {len(tables.rows)} images {len(absent)} are missing"
        missing_problems.add("images/", what, fix, name)
    return missing


def _build_records(
    tables: Tables,
    names: Sequence[str],
    images: Images,
    checksums: dict[str, str],
    missing: tuple[str, ...],
    findings: tuple[str, ...],
    sizes: Mapping[str, tuple[int, int]],
) -> Records:
    rows = [tables.rows[name] for name in names]
    # Few rows have different labels, so each kind is turned into numbers only once.
    label_rows = {
        (known, unknown): [UNKNOWN_LABEL if f in unknown else f in known for f in findings]
        for known, unknown in {(row.labels, row.unknown) for row in rows}
    }
    boxes, has_box = _box_arrays(tables, names, findings, sizes)
    patient_names = np.array([row.patient for row in rows], np.str_)
    test = tables.lists.get(tables.list_names[1])
    return Records(
        root=tables.root,
        names=np.array(names, dtype=np.str_),
        images=images,
        patients=_number_patients(patient_names, tables),
        patient_names=patient_names,
        labels=np.array([label_rows[row.labels, row.unknown] for row in rows], np.int8),
        boxes=boxes,
        has_box=has_box,
        official_test=None if test is None else np.array([name in test for name in names], bool),
        findings=findings,
        sex=np.array([row.sex for row in rows], np.str_),
        age=np.array([row.age for row in rows], np.int64),
        view=np.array([row.view for row in rows], np.str_),
        checksums=checksums,
        missing=missing,
    )


def _number_patients(names: np.ndarray, tables: Tables) -> np.ndarray:
    """int64 [n]: NIH's own numbers; elsewhere a name may be any text."""
    if tables.own_frames:
        return np.unique(names, return_inverse=True)[1].astype(np.int64)
    return names.astype(np.int64)


def _box_arrays(
    tables: Tables,
    names: Sequence[str],
    findings: tuple[str, ...],
    sizes: Mapping[str, tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """`boxes` and `has_box` of Records. sizes: of files whose boxes are in their own pixels; others have no box."""
    index = {name: i for i, name in enumerate(names)}
    column = {finding: j for j, finding in enumerate(findings)}
    most = max(map(len, tables.boxes.values()), default=1)
    boxes = np.zeros((len(names), len(findings), most, 4), np.float32)
    for (image, finding), sides in tables.boxes.items():
        if image not in index or finding not in column:
            continue
        frame = sizes.get(image) if tables.own_frames else (NIH_SIDE, NIH_SIDE)
        if frame is not None:
            xywh = np.array(sides, np.float64) * NIH_SIDE / np.tile(frame, 2)
            boxes[index[image], column[finding], : len(sides)] = from_nih_pixels(xywh)
    has_box = (boxes[..., 2:] > boxes[..., :2]).all(-1).any(-1)
    return boxes, np.asarray(has_box)
