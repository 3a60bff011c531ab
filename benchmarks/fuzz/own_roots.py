"""A small data root in the simple layout of own X-rays, its Records as numbers, and the doors that read it."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from benchmarks.fuzz import formats
from benchmarks.fuzz.judge import Answer
from benchmarks.fuzz.roots import SEXES, VIEWS, Join, doors, join_rows
from benchmarks.fuzz.scene import Random, plain_png

LABELS, BOXES = "images.csv", "annotations.csv"
COLUMNS = ("image", "patient", "split", "sex", "age", "view")
FINDINGS = ("Rib fracture", "Opacity", "Überblähung")  # not in the order of their letters
NO_SPLIT = -1
_SUFFIXES = ("png", "jpg", "tif")
NAMES = tuple(f"Thorax {k:02d}.{_SUFFIXES[k % 3]}" for k in range(12))
# (width, height) as the images are seen: all different, and no square.
SIZES = {name: (40 + 3 * k, 71 - 2 * k) for k, name in enumerate(NAMES)}
PATIENTS = ("P-1", "Müller", "7", "07", "Zoë K.", "10")  # of two images each
_PARTS = ("train", "test", "val", "train", "test", "train")


class OwnTables(NamedTuple):
    """The cells of both text files, with their headers."""

    labels: list[list[str]]
    boxes: list[list[str]]

    def files(self, join: Join = join_rows) -> dict[str, bytes]:
        return {LABELS: join(self.labels), BOXES: join(self.boxes)}


def own_tables(random: Random) -> OwnTables:
    """12 images of 6 patients, with labels of all four sorts, and up to three boxes of a finding in an image."""
    box_rows = _box_rows(random)
    boxed = {(image, finding) for image, finding, *_ in box_rows}
    label_rows = [
        [
            *(name, PATIENTS[k // 2], _PARTS[k // 2]),
            *(str(random.choice([*SEXES])), str(random.integers(1, 95))),
            str(random.choice([*VIEWS])),
            *(
                "1" if (name, finding) in boxed else str(random.choice(["1", "0", "", "-1"]))
                for finding in FINDINGS
            ),
        ]
        for k, name in enumerate(NAMES)
    ]
    return OwnTables(
        [[*COLUMNS, *FINDINGS], *label_rows],
        [["image", "finding", "x", "y", "w", "h"], *box_rows],
    )


def _box_rows(random: Random) -> list[list[str]]:
    """Rows of the box table without its header. They look like no corners; some touch the edge."""
    while True:
        chosen = random.permutation(len(NAMES) * len(FINDINGS))[:8]
        rows, sides = [], []
        for place, count in zip(chosen, (3, 3, 2, 2, 1, 1, 1, 1), strict=True):
            name = NAMES[place // len(FINDINGS)]
            for _ in range(count):
                size = random.uniform(2, np.array(SIZES[name]) / 2).round(1)
                share = random.choice([0, 1, *random.uniform(0, 1, 8)], 2)
                box = [*(share * (SIZES[name] - size)).round(1), *size]
                sides.append(box)
                cells = [f"{side:.10g}" for side in box]
                rows.append([name, FINDINGS[place % len(FINDINGS)], *cells])
        boxes = np.array(sides)
        if np.mean((boxes[:, 2:] > boxes[:, :2]).all(1)) < 0.5:
            return [rows[k] for k in random.permutation(len(rows))]


@functools.cache
def images() -> dict[str, bytes]:
    """Path of each image in a root → its file. The pixels of every second one are stored turned."""
    return {f"images/{name}": _image_file(name, 6 if k % 2 else 1) for k, name in enumerate(NAMES)}


def _image_file(name: str, orientation: int) -> bytes:
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=(8, 8))
    smooth = cv2.resize(noise, SIZES[name], interpolation=cv2.INTER_LINEAR)
    upright = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).round().astype(np.uint8)
    stored = formats.stored_for(orientation, upright)
    if name.endswith("jpg"):
        return formats.jpeg(stored, quality=95, exif=b"Exif\0\0" + formats.exif(orientation))
    if name.endswith("tif"):
        return formats.tiff([stored], tags={274: [orientation]})
    head, *rest = formats.png_chunks(stored)
    return formats.png([head, (b"eXIf", formats.exif(orientation)), *rest])


def more_images() -> dict[str, bytes]:
    """Files without a row."""
    return {"images/other.png": plain_png(np.eye(9, dtype=np.uint8)), "images/notes.txt": b"?"}


# ---- Records as numbers ----------------------------------------------------------------------------------------


class Image(NamedTuple):
    """One row of Records. labels: finding → 1, 0 or −1. boxes: finding → (x0, y0, x1, y1) in fractions, each.

    test: NO_SPLIT without a split. sex, view: codes; age: years or −1.
    """

    name: str
    patient: str
    labels: Mapping[str, int]
    boxes: Mapping[str, Sequence[Sequence[float]]]
    test: int
    age: int
    sex: int
    view: int


def encode(rows: Collection[Image], findings: Collection[str]) -> np.ndarray:
    """Float64 [n k]: the numbers of each image, in the order of the names, and of each finding, in the order of theirs.

    Of a name the checksum stands there, and of a patient also the place among all names of patients.
    """
    findings, patients = sorted(findings), sorted({image.patient for image in rows})
    most = max((len(boxes) for image in rows for boxes in image.boxes.values()), default=1)
    numbers = []
    for image in sorted(rows):
        boxes = np.zeros((len(findings), most, 4))
        for finding, several in image.boxes.items():
            boxes[findings.index(finding), : len(several)] = np.float32(several)
        numbers.append(
            [
                *(_code(image.name), _code(image.patient), patients.index(image.patient)),
                *map(_code, findings),
                *(image.labels[finding] for finding in findings),
                *(bool(image.boxes.get(finding)) for finding in findings),
                *boxes.ravel(),
                *(image.test, image.age, image.sex, image.view),
            ]
        )
    return np.array(numbers, np.float64)


def _code(name: str) -> int:
    return zlib.crc32(str(name).encode("utf-8", "surrogateescape"))


def _encode_records(records: Any) -> np.ndarray:
    """The same numbers of the program's Records."""
    n, order = len(records.names), np.argsort(records.findings)
    test = np.full(n, NO_SPLIT) if records.official_test is None else records.official_test
    parts = (
        *([_code(name) for name in names] for names in (records.names, records.patient_names)),
        records.patients,
        np.tile([_code(records.findings[j]) for j in order], (n, 1)),
        *(records.labels[:, order], records.has_box[:, order]),
        *(records.boxes[:, order].reshape(n, -1), test, records.age),
        [SEXES.get(str(sex), 0) for sex in records.sex],
        [VIEWS.get(str(view), 0) for view in records.view],
    )
    return np.column_stack([np.asarray(part, np.float64) for part in parts])


def own_doors(root: Path, truth: np.ndarray | None, uncertain: str) -> Answer:
    return doors(root, truth, encode_records=_encode_records, findings="all", uncertain=uncertain)
