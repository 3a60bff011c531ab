"""Mutations of the four text files of a data root: by cell, by column, by line, by byte, and of the whole set.

`roots.doors` asks the program: verify first, and then the Records with which training begins. The truth of a
changed cell is known. `strict.read` says what may come out of changed lines and bytes, or that they must be refused.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from benchmarks.fuzz import strict, table_lines
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.roots import (
    BOXES,
    FRAME,
    NAMES,
    doors,
    encode_images,
    greys,
    images,
    seen_case,
    small_boxes,
    small_tables,
    write_root,
)
from benchmarks.fuzz.scene import Kind, Random, take
from benchmarks.fuzz.table_cases import (
    AGE,
    LABEL,
    NAME,
    PATIENT,
    SEX,
    VIEW,
    by_strict,
    line_of,
    must_read,
    must_refuse,
    readable,
)
from benchmarks.fuzz.table_forms import harmless

_SEX_CODES = {"M": 1, "F": 2, "m": 1, "f": 2, "male": 1, "Female": 2, "MALE": 1, "": 0}
_VIEW_CODES = {
    "PA": 1,
    "AP": 2,
    "pa": 1,
    "Ap": 2,
    "AP Supine": 2,
    "PA erect": 1,
    "ap supine": 2,
    "": 0,
}
_AGES = {
    "58": 58,
    "058Y": 58,
    "58.0": 58,
    "58 years": 58,
    "013M": 1,
    "004D": 0,
    "": -1,
    "414": -1,
    "0": 0,
}
_CODE_FROM_END = {AGE: -3, SEX: -2, VIEW: -1}  # the place in a row of `roots.encode`
_BAD_PATIENTS = ("9" * 5000, "1_000", "１", "-1", "1.5", "", "2147483648", "1e3", "P7", "0x10")
_BAD_LABELS = (
    *("No Pneumonia", "Cardiomegaly;Effusion", "Noddule", "", "Mass|", "|", "Mass,Nodule", "nan"),
    *("No Finding|Mass", "Effusion|No Finding", "None", "Mass|Noddule"),
)
_LABEL_CELLS: tuple[tuple[int, str, int | None], ...] = (
    *((SEX, text, code) for text, code in _SEX_CODES.items()),
    *((VIEW, text, code) for text, code in _VIEW_CODES.items()),
    *((AGE, text, age) for text, age in _AGES.items()),
    *((PATIENT, text, None) for text in _BAD_PATIENTS),
    *((LABEL, text, None) for text in _BAD_LABELS),
    *((NAME, text, None) for text in ("", "00000099_000.png", "00000001_000.PNG.png")),
)


def in_quotes(text: str) -> str:
    return f'"{text}"' if "," in text else text


def _label_cell(random: Random, folder: Path, turn: int) -> Case:
    column, text, code = _LABEL_CELLS[turn % len(_LABEL_CELLS)]
    tables = small_tables(random)
    row = int(random.integers(1, len(NAMES) + 1))
    name = tables.labels[row][NAME]
    tables.labels[row][column] = in_quotes(text)
    what = f"{tables.labels[0][column]} is {text[:40]!r} in line {row + 1}"
    if code is None:
        place = line_of("", row + 1, name, text if column == NAME else "")
        return must_refuse(what, folder, tables.files(), place)
    truth = strict.read(tables.files(), NAMES)
    if truth[row - 1, _CODE_FROM_END[column]] != code:
        raise AssertionError(f"the strict parser reads another value: {what}")
    return must_read(what, folder, tables.files(), truth, images())


def _long_cell(random: Random, folder: Path, turn: int) -> Case:
    """An age of many digits and a cell of many characters: unknown, or a sentence."""
    tables = small_tables(random)
    row = tables.labels[int(random.integers(1, len(NAMES) + 1))]
    way = take(("age", "other column", "image", "finding"), turn)
    column = {"age": AGE, "other column": 2, "image": NAME, "finding": LABEL}[way]
    row[column] = "9" * int(random.choice([5_000, 200_000]))
    return by_strict(f"{way} of {len(row[column])} digits", folder, tables.files())


BAD_NUMBERS = (
    "1_0",
    "nan",
    "inf",
    "-inf",
    "１",
    "",
    "1,5",
    "0x10",
    "1e",
    "--5",
    "1 0",
    "NaN",
    "9" * 5000,
)
_BAD_PLACES = ("-0.5", "-1", "1025", "1020", "1e4")
_BAD_SIZES = ("0", "-30", "0.25", "7.9", "1025", "-0")
_BOX_CELLS: tuple[tuple[str, str], ...] = (
    *(("any side", text) for text in BAD_NUMBERS),
    *(("x or y", text) for text in _BAD_PLACES),
    *(("w or h", text) for text in _BAD_SIZES),
    *(("label", text) for text in ("No Pneumonia", "Noddule", "", "No Finding", "Mass|Nodule")),
    *(("image", text) for text in ("", "00000099_000.png", "00000001_000.jpg")),
    *(("second box", text) for text in ("the same", "another")),
)
_GOOD_PLACES = {"0": 0.0, "0.0": 0.0, "00.50": 0.5, ".5": 0.5, "1.": 1.0, "+2": 2.0}


def _box_cell(random: Random, folder: Path, turn: int) -> Case:
    turn %= len(_BOX_CELLS) + len(_GOOD_PLACES)
    tables = small_tables(random)
    row = int(random.integers(1, len(tables.boxes)))
    cells = tables.boxes[row]
    name = cells[0]
    if turn >= len(_BOX_CELLS):
        text, value = [*_GOOD_PLACES.items()][turn - len(_BOX_CELLS)]
        cells[2] = str(value)
        truth = strict.read(tables.files(), NAMES)
        cells[2] = text
        return must_read(
            f"x is {text!r} in line {row + 1}", folder, tables.files(), truth, images()
        )
    where, text = _BOX_CELLS[turn]
    if where == "second box":
        box = cells[2:6] if text == "the same" else ["100", "120", "140", "160"]
        row = int(random.integers(row + 1, len(tables.boxes) + 1))
        tables.boxes.insert(row, [*cells[:2], *box, "", "", ""])
    else:
        columns = {
            "any side": (2, 3, 4, 5),
            "x or y": (2, 3),
            "w or h": (4, 5),
            "label": (1,),
            "image": (0,),
        }
        cells[int(random.choice(columns[where]))] = in_quotes(text)
    must_say = line_of(BOXES, row + 1, name, text if where == "image" else "")
    return must_refuse(
        f"{where}: {text[:40]!r} in line {row + 1}", folder, tables.files(), must_say
    )


NAME_FORMS = (
    *("sub/{}", "../{}", "/{}", "sub\\{}", ".{}", "={}", "+{}", "@{}"),
    *("0\t{}", "0\x01{}", "0\x7f{}", "0\x1b{}", "0\x1c{}", "0\x0b{}"),
)


def _name(random: Random, folder: Path, turn: int) -> Case:
    """An image has an odd name, and everything uses this name: the table, the boxes, its list and its file."""
    form = take(NAME_FORMS, turn)
    tables = small_tables(random)
    row = int(random.integers(1, len(NAMES) + 1))
    old, new = tables.labels[row][NAME], form.format(tables.labels[row][NAME])
    for rows in (tables.labels, tables.boxes):
        for cells in rows:
            cells[0] = new if cells[0] == old else cells[0]
    for names in (tables.train_val, tables.test):
        names[:] = [new if name == old else name for name in names]
    path = {"../{}": old}.get(form, f"images/{new}")
    pictures = {path if name == f"images/{old}" else name: data for name, data in images().items()}
    must_say = line_of("", row + 1, old)
    return must_refuse(f"{new!r} in line {row + 1}", folder, tables.files(), must_say, pictures)


_UNREADABLE = {
    SEX: ("1", "2", "W", "weiblich", "x"),
    VIEW: ("LL", "lateral", "0", "?", "upright"),
    AGE: ("adult", "1961-03-04", "fifty", "60-70", "?", "n/a"),
}
_COLUMN_NAMES = {SEX: "sex|gender", VIEW: "view", AGE: r"\bage\b"}


def _columns(random: Random, folder: Path, turn: int) -> Case:
    """Most of the cells of a column that are not blank cannot be read."""
    column = list(_UNREADABLE)[turn % len(_UNREADABLE)]
    tables = small_tables(random)
    some = random.choice(_UNREADABLE[column], int(random.integers(1, 3)), replace=False)
    share, blank = random.uniform(0.6, 1), random.uniform(0, 0.5)
    filled = [row for row in tables.labels[1:] if random.random() >= blank] or tables.labels[1:]
    for row in tables.labels[1:]:
        row[column] = row[column] if any(row is one for one in filled) else ""
    for k in random.permutation(len(filled))[: int(np.ceil(share * len(filled)))]:
        filled[k][column] = str(random.choice(some))
    files = tables.files()
    root = write_root(folder, files, images())
    what = f"{tables.labels[0][column]}: {len(filled)} cells, {share:.0%} of {', '.join(some)}"
    truth = strict.read(files, NAMES)
    return seen_case(what, lambda: doors(root, truth), truth, _COLUMN_NAMES[column])


def _frame(random: Random, folder: Path, turn: int) -> Case:
    """All boxes as corners, or in pixels of files that are smaller than NIH's frame."""
    count = int(random.choice([12, 24]))
    tables = small_tables(random, count)
    if turn % 2:
        side, way = int(random.choice([128, 256])), "pixels of the files"
        boxes = np.array([_large_box(random, 8.5 * FRAME / side) for _ in range(count)])
        boxes = (boxes * side / FRAME).round(1)
    else:
        side, way = 32, "corners"
        boxes = np.array(small_boxes(random, count))
        if turn % 4 == 2:  # so that no sum of two corners leaves the frame
            boxes[:, :2] *= (FRAME - boxes[:, 2:]) / FRAME / 2
            boxes = boxes.round(1)
        boxes[:, 2:] += boxes[:, :2]
    for row, box in zip(tables.boxes[1:], boxes, strict=True):
        row[2:6] = [f"{value:.10g}" for value in box]
    files = tables.files()
    root = write_root(folder, files, images(side))
    truth = readable(files)
    return seen_case(f"{count} boxes: {way}", lambda: doors(root, truth), truth, re.escape(BOXES))


def _large_box(random: Random, smallest: float) -> np.ndarray:
    size = random.uniform(smallest, smallest + 400, 2)
    return np.concatenate([random.uniform(0, 1, 2) * (FRAME - size), size])


def _grey(random: Random, folder: Path, turn: int) -> Case:
    """All images have few bits in files of 16, with or without a white block burned in; or most images are constant."""
    bits, block = (0, 12, 13, 14, 15)[turn % 5], turn % 2 == 1
    if bits:
        top = 2**bits - 1
        pixels = [(grey * top * random.uniform(0.8, 1)).round() for grey in greys()]
        for picture in pixels if block else []:
            picture[2:7, -7:-2] = 65535  # 2.4 % of the pixels, as a label has
        what = f"{bits} bits in 16{', with a white block' if block else ''}"
    else:
        constant = int(random.integers(len(NAMES) * 2 // 3, len(NAMES) + 1))
        pixels = [grey * 255 for grey in greys()]
        for k in random.permutation(len(NAMES))[:constant]:
            pixels[k] = np.full_like(pixels[k], random.integers(256))
        what = f"{constant} of {len(NAMES)} images are constant"
    files = small_tables(random).files()
    root = write_root(folder, files, encode_images(pixels, np.uint16 if bits else np.uint8))
    truth = strict.read(files, NAMES)
    return seen_case(what, lambda: doors(root, truth), truth, "images")


KINDS: dict[str, Kind] = {
    "table_harmless": harmless,
    "table_label_cell": _label_cell,
    "table_long_cell": _long_cell,
    "table_box_cell": _box_cell,
    "table_name": _name,
    **table_lines.KINDS,
    "table_columns": _columns,
    "table_frame": _frame,
    "table_grey": _grey,
}
