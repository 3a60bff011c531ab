"""An independent, strict parser of NIH's four text files. It says what the program may read from a changed file.

Line by line: a row is one line, and its cells are those of csv's strict mode.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Collection, Iterator

import numpy as np

from benchmarks.fuzz.roots import (
    ANY,
    BOXES,
    FINDINGS,
    FRAME,
    LABELS,
    SEXES,
    TEST,
    TRAIN_VAL,
    VIEWS,
    Image,
    encode,
)

_LABEL_COLUMNS = (
    *(["Image Index"], ["Finding Labels"], ["Patient ID"], ["Patient Age"]),
    *(["Patient Gender", "Patient Sex"], ["View Position"]),
)
_BOX_COLUMNS = [[name] for name in ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")]
PLAIN_NAME = re.compile(r"[^./\\=+@\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_AGE = re.compile(r"([0-9]+)(?:Y|\.0| years?)?|([0-9]+)M|([0-9]+)D")
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_SMALLEST_SIDE = 8


class Refused(Exception):
    """The files must be refused."""


def read(files: dict[str, bytes], images: Collection[str]) -> np.ndarray:
    """What `roots.encode` makes of the files, ANY where the program may read a cell in several ways.

    images: the names of the image files.

    Raises:
        Refused: the files must be refused.
    """
    v2020 = LABELS.replace(".csv", "_v2020.csv")
    table = v2020 if {v2020, f"{v2020}.gz"} & files.keys() else LABELS
    rows = {}
    for name, *cells in rows_of(text_of(files, table), _LABEL_COLUMNS):
        require(PLAIN_NAME.fullmatch(name), "no plain name")
        require(name not in rows, "an image twice")
        rows[name] = cells
    boxes: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in rows}
    for name, label, *sides in rows_of(text_of(files, BOXES), _BOX_COLUMNS):
        finding = _finding(label)
        require(name in rows, "a box of an image without a row")
        require(finding not in boxes[name], "a second box of a finding")
        boxes[name][finding] = _box(sides)
    parts = [_listed(text_of(files, name)) for name in (TRAIN_VAL, TEST)]
    require(not set(parts[0]) & set(parts[1]), "an image in both lists")
    require({*parts[0], *parts[1]} == rows.keys(), "an image in no list, or without a row")
    require(rows.keys() <= set(images), "an image without a file")
    return encode(
        [
            Image(
                *(name, _patient(patient), _labels(labels), boxes[name], name in parts[1]),
                *(age_of(age), sex_of(sex), view_of(view)),
            )
            for name, (labels, patient, age, sex, view) in rows.items()
        ]
    )


def require(right: object, what: str) -> None:
    if not right:
        raise Refused(what)


def text_of(files: dict[str, bytes], name: str) -> str:
    try:
        data = files[name] if name in files else gzip.decompress(files[f"{name}.gz"])
        text = data.decode("utf-8-sig")
    except Exception as error:  # a damaged gzip file raises many kinds
        raise Refused(f"{name} is missing or damaged") from error
    require("\0" not in text, "a zero byte")
    return text


def header_of(text: str) -> list[str]:
    return next(filter(any, map(_cells, _LINE_BREAK.split(text))), [])


def rows_of(text: str, columns: Collection[Collection[str]]) -> Iterator[list[str]]:
    """The cells of the needed columns of every row that is not blank. columns: the names that each may have."""
    lines = _LINE_BREAK.split(text)
    require(not lines[-1].strip(), "no line break at the end")
    parsed = [cells for cells in map(_cells, lines) if any(cells)]
    require(parsed, "no header")
    header, *rows = parsed
    places = [[k for k, cell in enumerate(header) if cell in names] for names in columns]
    require(all(len(place) == 1 for place in places), "no such column, or two of them")
    width = min(map(len, parsed[:2]))
    for cells in rows:
        require(len(cells) >= max(width, *(place[0] + 1 for place in places)), "a short row")
        require(not any(cells[len(header) :]), "a long row")
        yield [cells[place[0]] for place in places]


def _cells(line: str) -> list[str]:
    if '"' not in line:  # csv refuses a cell of more than 131,072 characters
        return [cell.strip() for cell in line.split(",")]
    line = re.sub(r'"[ \t]+(?=,|$)', '"', re.sub(r'(^|,)[ \t]+(?=")', r"\1", line))
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
    except csv.Error as error:
        raise Refused("a quotation mark that is not closed") from error


def _listed(text: str) -> list[str]:
    names = [line.strip() for line in _LINE_BREAK.split(text) if line.strip()]
    require(len(names) == len(set(names)), "an image twice in a list")
    return names


def _patient(text: str) -> int:
    require(re.fullmatch(r"0*[0-9]{1,10}", text), "no patient")
    require(int(text) < 2**31, "no patient")
    return int(text)


def _labels(text: str) -> list[str]:
    names = [name.strip() for name in text.split("|")]
    return [] if names == ["No Finding"] else [_finding(name) for name in names]


def _finding(name: str) -> str:
    finding = "Infiltration" if name == "Infiltrate" else name
    require(finding in FINDINGS, "an unknown label")
    return finding


def _box(sides: Collection[str]) -> tuple[float, ...]:
    require(all(map(NUMBER.fullmatch, sides)), "no number")
    x, y, w, h = map(float, sides)
    require(min(x, y) >= 0 and max(x + w, y + h) <= FRAME, "a box that leaves the frame")
    require(min(w, h) >= _SMALLEST_SIDE, "a box that is too small")
    return x, y, w, h


def age_of(text: str) -> int:
    match = _AGE.fullmatch(text)
    if match is None or len(text) > 99:
        return ANY if re.search(r"\d", text) and len(text) <= 99 else -1
    years, months, days = (int(number or 0) for number in match.groups())
    age = years + months // 12 + days // 365
    return age if age <= 120 else -1


def sex_of(text: str) -> int:
    return SEXES.get({"MALE": "M", "FEMALE": "F"}.get(text.upper(), text.upper()), 0)


def view_of(text: str) -> int:
    word = re.fullmatch(r"(PA|AP)( [A-Z]+)*", text, re.IGNORECASE)
    if word is None:
        return ANY if re.search(r"(?<![A-Z])(PA|AP)(?![A-Z])", text, re.IGNORECASE) else 0
    return VIEWS[word[1].upper()]
