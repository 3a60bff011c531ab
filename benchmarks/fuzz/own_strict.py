"""An independent, strict parser of images.csv and annotations.csv, line by line as `strict` reads NIH's files."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from decimal import Decimal

import numpy as np

from benchmarks.fuzz.own_roots import BOXES, COLUMNS, LABELS, NO_SPLIT, Image, encode
from benchmarks.fuzz.strict import (
    NUMBER,
    PLAIN_NAME,
    age_of,
    header_of,
    require,
    rows_of,
    sex_of,
    text_of,
    view_of,
)

UNCERTAIN = {"ignore": -1, "positive": 1, "negative": 0}
_LABELS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": -1}
_SPLITS = {"train": 0, "val": 0, "test": 1, "": NO_SPLIT}
_BOX_COLUMNS = [[name] for name in ("image", "finding", "x", "y", "w", "h")]
_ANY_NAME = re.compile(r"[^=+@\x00-\x1f\x7f][^\x00-\x1f\x7f]*")  # of a patient or a finding


def read(
    files: dict[str, bytes], sizes: Mapping[str, tuple[int, int]], uncertain: str
) -> np.ndarray:
    """What `own_roots.encode` makes of the files, ANY where the program may read a cell in several ways.

    sizes: image file → (width, height) as it is seen. uncertain: as --config.data.uncertain.

    Raises:
        Refused: the files must be refused.
    """
    text = text_of(files, LABELS)
    header = header_of(text)
    findings = [name for name in header if name and name not in COLUMNS]
    require(findings and all(map(_ANY_NAME.fullmatch, findings)), "no finding, or a wrong name")
    present = [name for name in COLUMNS if name in header or name in ("image", "patient")]
    rows = {}
    for cells in rows_of(text, [[name] for name in (*present, *findings)]):
        row = dict.fromkeys(COLUMNS, "") | dict(zip((*present, *findings), cells, strict=True))
        require(PLAIN_NAME.fullmatch(row["image"]), "no plain name")
        require(row["image"] not in rows, "an image twice")
        require(row["image"] in sizes, "an image without a file")
        require(_ANY_NAME.fullmatch(row["patient"]), "no patient, or a wrong name")
        require(row["split"].lower() in _SPLITS, "an unknown split")
        rows[row["image"]] = row
    require(rows, "no row")
    tests = [_SPLITS[row["split"].lower()] for row in rows.values()]
    require(NO_SPLIT not in tests or set(tests) == {NO_SPLIT}, "a row without a split")
    boxes = _boxes(files, {name: sizes[name] for name in rows}, findings)
    return encode(
        [
            Image(
                *(name, row["patient"], {f: _label(row[f], uncertain) for f in findings}),
                *(boxes[name], test, age_of(row["age"]), sex_of(row["sex"]), view_of(row["view"])),
            )
            for (name, row), test in zip(rows.items(), tests, strict=True)
        ],
        findings,
    )


def _label(text: str, uncertain: str) -> int:
    labels = _LABELS
    if uncertain in UNCERTAIN:
        labels = _LABELS | dict.fromkeys(("-1", "-1.0"), UNCERTAIN[uncertain])
    require(text in labels, "no label")
    return labels[text]


def _boxes(
    files: dict[str, bytes], sizes: Mapping[str, tuple[int, int]], findings: Collection[str]
) -> dict[str, dict[str, list[tuple[float, ...]]]]:
    """Image → finding → boxes (x0, y0, x1, y1) in fractions."""
    boxes: dict[str, dict[str, list[tuple[float, ...]]]] = {name: {} for name in sizes}
    if not {BOXES, f"{BOXES}.gz"} & files.keys():
        return boxes
    for name, finding, *sides in rows_of(text_of(files, BOXES), _BOX_COLUMNS):
        require(name in sizes and finding in findings, "an unknown image or finding")
        require(all(map(NUMBER.fullmatch, sides)), "no number")
        x, y, w, h = map(Decimal, sides)
        width, height = sizes[name]
        require(min(x, y) >= 0 and x + w <= width and y + h <= height, "a box outside its image")
        require(min(w, h) >= 1, "a box that is too small")
        left, top, across, down = (
            float(a) / b for a, b in zip((x, y, w, h), 2 * sizes[name], strict=True)
        )
        box = (left, top, left + across, top + down)
        several = boxes[name].setdefault(finding, [])
        require(box not in several, "a box twice")
        several.append(box)
    return boxes
