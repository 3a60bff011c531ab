"""A small data root in NIH's layout, and the two doors of the program that read a data root."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from benchmarks.fuzz.judge import REFUSED, Answer, Case, Region, either, same
from benchmarks.fuzz.scene import Random, write

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
LABELS, BOXES = "Data_Entry_2017.csv", "BBox_List_2017.csv"
TRAIN_VAL, TEST = "train_val_list.txt", "test_list.txt"
_LABEL_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
_BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
SEXES, VIEWS = {"M": 1, "F": 2}, {"PA": 1, "AP": 2}  # any other text is 0
SIDE = 32  # pixels of an image
FRAME = 1024  # pixels of the frame in which NIH gives boxes
ANY = -9  # in a truth: the program may read this cell in several ways

# Patients 1 to 12; the last four are the official test part.
NAMES = tuple(
    f"{patient:08d}_{k:03d}.png" for patient in range(1, 13) for k in range(2 + patient % 2)
)
_FIRST_TEST_PATIENT = 9
_BOXED_FINDINGS = (*FINDINGS[:3], "Infiltrate", *FINDINGS[4:8])
_SILENT = np.zeros((0, 0))  # what verify gives for a root without a problem
_NO_REGION = np.zeros(0, bool)


Join = Callable[[Iterable[Sequence[str]]], bytes]


def join_rows(rows: Iterable[Sequence[str]]) -> bytes:
    return "".join(",".join(row) + "\n" for row in rows).encode()


class Tables(NamedTuple):
    """The cells of the four text files; the first row of `labels` and of `boxes` is the header."""

    labels: list[list[str]]
    boxes: list[list[str]]
    train_val: list[str]
    test: list[str]

    def files(self, join: Join = join_rows) -> dict[str, bytes]:
        """join: writes the label table and the box table."""
        return {
            LABELS: join(self.labels),
            BOXES: join(self.boxes),
            TRAIN_VAL: join_rows([name] for name in self.train_val),
            TEST: join_rows([name] for name in self.test),
        }


def small_tables(random: Random, boxes: int = 12) -> Tables:
    """30 images of 12 patients; boxes lie on the images with the first `boxes` places of a random order."""
    age_form = str(random.choice(["{}", "{:03d}Y"]))
    found = {name: set(random.choice(FINDINGS, int(random.integers(0, 3)))) for name in NAMES}
    box_rows = []
    for name, box in zip(random.permutation(NAMES), small_boxes(random, boxes), strict=False):
        finding = str(random.choice(_BOXED_FINDINGS))
        found[str(name)].add("Infiltration" if finding == "Infiltrate" else finding)
        box_rows.append([str(name), finding, *(f"{side:.10g}" for side in box), "", "", ""])
    label_rows = [
        [
            *(
                name,
                "|".join(sorted(found[name])) or "No Finding",
                name[9:12],
                str(patient_of(name)),
            ),
            age_form.format(int(random.integers(1, 95))),
            *(str(random.choice([*SEXES])), str(random.choice([*VIEWS]))),
            *("2500", "2048", ".143", ".143", ""),
        ]
        for name in NAMES
    ]
    is_test = [patient_of(name) >= _FIRST_TEST_PATIENT for name in NAMES]
    return Tables(
        [_LABEL_HEADER.split(","), *label_rows],
        [_BOX_HEADER.split(","), *box_rows],
        [name for name, test in zip(NAMES, is_test, strict=True) if not test],
        [name for name, test in zip(NAMES, is_test, strict=True) if test],
    )


def small_boxes(random: Random, count: int) -> list[np.ndarray]:
    """(x, y, w, h) in NIH's frame, all over it: no one can take them for corners, or for pixels of small files."""
    while True:
        sizes = random.uniform(40, 400, (count, 2)).round(1)
        places = (random.uniform(0, 1, (count, 2)) * (FRAME - 1 - sizes)).round(1)
        if (places > sizes).any(1).sum() > count // 3 and (places + sizes).max() > 700:
            return list(np.hstack([places, sizes]))


def patient_of(name: str) -> int:
    return int(name[:8])


@functools.cache
def images(side: int = SIDE) -> dict[str, bytes]:
    """Path of each image in a root → its PNG file, with grey values from 0 to 255."""
    return encode_images([_grey(name, side) * 255 for name in NAMES])


def encode_images(pixels: Sequence[np.ndarray], dtype: type = np.uint8) -> dict[str, bytes]:
    """Path → PNG file of the images in the order of NAMES; pixels: [h w] of any real dtype."""
    files = (cv2.imencode(".png", p.round().astype(dtype))[1].tobytes() for p in pixels)
    return {f"images/{name}": file for name, file in zip(NAMES, files, strict=True)}


@functools.cache
def _grey(name: str, side: int = SIDE) -> np.ndarray:
    """[side side] from 0 to 1, smooth, another picture for each name."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=(8, 8))
    smooth = cv2.resize(noise, (side, side), interpolation=cv2.INTER_LINEAR)
    return cv2.normalize(smooth, None, 0, 1, cv2.NORM_MINMAX)


def greys() -> list[np.ndarray]:
    """The pictures [SIDE SIDE] of all images, from 0 to 1."""
    return [_grey(name) for name in NAMES]


# ---- Records as numbers ----------------------------------------------------------------------------------------


class Image(NamedTuple):
    """One row of Records. boxes: finding → (x, y, w, h) in NIH's frame. sex, view: codes; age: years or −1."""

    name: str
    patient: int
    labels: Collection[str]
    boxes: dict[str, tuple[float, ...]]
    test: bool
    age: int
    sex: int
    view: int


def encode(rows: Collection[Image]) -> np.ndarray:
    """Float64 [n k]: the numbers of each image, in the order of the names. Of the name the checksum stands there."""
    return np.array([_numbers(image) for image in sorted(rows)], np.float64)


def _numbers(image: Image) -> list[float]:
    corners = np.zeros((len(FINDINGS), 4))
    for finding, (x, y, w, h) in image.boxes.items():
        corners[FINDINGS.index(finding)] = np.float32(np.array([x, y, x + w, y + h]) / FRAME)
    return [
        *(zlib.crc32(image.name.encode("utf-8", "surrogateescape")), image.patient),
        *(finding in image.labels for finding in FINDINGS),
        *(finding in image.boxes for finding in FINDINGS),
        *corners.ravel(),
        *(image.test, image.age, image.sex, image.view),
    ]


def _encode_records(records: Any) -> np.ndarray:
    """The same numbers of the program's Records."""
    columns = [records.findings.index(finding) for finding in FINDINGS]
    codes = [zlib.crc32(str(name).encode("utf-8", "surrogateescape")) for name in records.names]
    parts = (
        *(codes, records.patients, records.labels[:, columns], records.has_box[:, columns]),
        records.boxes[:, columns].reshape(len(codes), -1),
        *(records.official_test, records.age),
        [SEXES.get(str(sex), 0) for sex in records.sex],
        [VIEWS.get(str(view), 0) for view in records.view],
    )
    return np.column_stack([np.asarray(part, np.float64) for part in parts])


# ---- the doors -------------------------------------------------------------------------------------------------


def doors(
    root: Path,
    truth: np.ndarray | None = None,
    picture_side: int = 0,
    encode_records: Callable[[Any], np.ndarray] = _encode_records,
    **options: Any,
) -> Answer:
    """Row 0: what verify says of the root. Row 1: the Records with which training begins, [n k].

    picture_side: if it is above 0, the pixels of each image stand behind its numbers. options: of both doors; NIH's 14
    findings without any. Where training refuses a root in which verify has seen nothing, row 0 has no reason.
    """
    from kacl_jax.data.records import read_records
    from kacl_jax.data.verify import check
    from kacl_jax.images.reader import BrokenImage
    from kacl_jax.runtime.errors import UserError

    options = options or {"findings": 14}
    try:
        seen = " ".join(map(str, check(root, **options).problems))
    except UserError as error:
        seen = str(error)
    values, reason = None, ""
    try:
        records = read_records(root, **options)
        values = encode_records(records)
        if picture_side:
            pixels = [records.images.read(i, picture_side).ravel() for i in range(len(values))]
            values = np.hstack([values, pixels])
    except (UserError, BrokenImage) as error:
        values, reason = None, str(error)
    if values is not None and truth is not None and values.shape == truth.shape:
        values[truth == ANY] = ANY
    silent = _SILENT if values is not None else None
    rows = [(None if seen else silent, _sentence(seen)), (values, _sentence(reason))]
    return Answer(rows, f"{seen} {reason}")


def _sentence(text: str) -> str:
    """'' for a text that is not meant for a user."""
    return "" if "Traceback" in text else text


def same_case(what: str, call: Callable[[], Answer], truth: np.ndarray) -> Case:
    return Case(what, call, [same(_SILENT, _NO_REGION), same(truth, _NO_REGION)])


def either_case(what: str, call: Callable[[], Answer], *truths: np.ndarray) -> Case:
    regions = (Region(truth, _NO_REGION) for truth in truths)
    return Case(what, call, [either(Region(_SILENT, _NO_REGION)), either(*regions)])


def refused_case(what: str, call: Callable[[], Answer], must_say: str = "") -> Case:
    return Case(what, call, [REFUSED, REFUSED], must_say=must_say)


def seen_case(
    what: str, call: Callable[[], Answer], truth: np.ndarray | None, must_say: str = ""
) -> Case:
    """Verify must see it; training may begin with the `truth`, or must refuse the root if there is none."""
    training = REFUSED if truth is None else either(Region(truth, _NO_REGION))
    return Case(what, call, [REFUSED, training], must_say=must_say)


def write_root(folder: Path, tables: dict[str, bytes], pictures: dict[str, bytes]) -> Path:
    root = folder / "root"
    write(root, tables)
    write(root, pictures)
    return root
