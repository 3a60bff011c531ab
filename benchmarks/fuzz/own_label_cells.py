"""Mutations of images.csv by cell: labels, patients, splits and names, in a row or in the header."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.own_cases import (
    AGE,
    FIRST_FINDING,
    IMAGE,
    OWN,
    PATIENT,
    SEX,
    SPLIT,
    VIEW,
    must_read_own,
)
from benchmarks.fuzz.own_roots import (
    COLUMNS,
    FINDINGS,
    LABELS,
    NAMES,
    OwnTables,
    images,
    own_tables,
)
from benchmarks.fuzz.scene import Random
from benchmarks.fuzz.table_cases import line_of, must_refuse
from benchmarks.fuzz.tables import NAME_FORMS, in_quotes

_GOOD_CELLS: dict[int, tuple[tuple[str, str], ...]] = {
    # (what the cell says, what it means)
    FIRST_FINDING: (("1.0", "1"), (" 0.0 ", "0"), ("-1.0", "-1"), ('"1"', "1"), ('""', ""), ("  ", "")),
    SPLIT: (("TRAIN", "train"), ("Val", "val"), (" test ", "test")),
    PATIENT: (('"Meyer, Anna"',) * 2, ("-5",) * 2, ("１",) * 2, ("nan",) * 2, ("1.5",) * 2, ("9" * 5000,) * 2,
              ("a/b",) * 2, ('"O""Neil"',) * 2),
    SEX: (("male", "M"), ("Female", "F"), ("f", "F"), ("x", "")),
    AGE: (("058Y", "58"), ("58 years", "58"), ("414", ""), ("adult", "")),
    VIEW: (("ap", "AP"), ("PA erect", "PA"), ("LL", "")),
}  # fmt: skip
_BAD_CELLS: dict[int, tuple[str, ...]] = {
    FIRST_FINDING: (
        *("yes", "no", "2", "NaN", "nan", "1,0", "1" * 5000, "0" * 200_000, "１", "-2", "0.5", "1e0"),
        *("true", "FALSE", "−1", "None", "?", "+1", "01", "1 0", "1.", "-", "--1", "=1", "1\x01", "1;0"),
    ),
    SPLIT: ("training", "validation", "dev", "tst", "1", "train|test", "", "ｔｅｓｔ", "train\x01t"),
    PATIENT: ("", "=1+1", "+49", "@SUM(A1)", "P\x01 1", "P\x1b[2J1", "P\x7f1", "P\t1"),
    IMAGE: ("", "other.png", "Thorax 00.jpg", "THORAX 00.png", "images/Thorax 00.png", "Thorax 00"),
}  # fmt: skip
_BAD_FINDINGS = ("=Opacity", "+Opacity", "@Opacity", "Opa\x01city", "Opa\x1b[2Jcity", FINDINGS[0])
_WRONG_HEADERS = ("no finding", "no image", "no patient", "image in upper case", "no row")
_LABEL_CELLS: tuple[tuple[int, str, str | None], ...] = (
    *((column, text, None) for column, texts in _BAD_CELLS.items() for text in texts),
    *((column, text, meant) for column, pairs in _GOOD_CELLS.items() for text, meant in pairs),
)


def label_cell(random: Random, folder: Path, turn: int) -> Case:
    ways: list[Callable[[Random, Path, int], Case]] = [
        *[_one_label_cell] * len(_LABEL_CELLS),
        *[_image_name] * len(NAME_FORMS),
        *[_header_cell] * (len(_BAD_FINDINGS) + len(_WRONG_HEADERS)),
    ]
    turn %= len(ways)
    return ways[turn](random, folder, turn - ways.index(ways[turn]))


def _one_label_cell(random: Random, folder: Path, turn: int) -> Case:
    column, text, meant = _LABEL_CELLS[turn]
    tables = own_tables(random)
    row = int(random.integers(1, len(NAMES) + 1))
    cells, name = tables.labels[row], tables.labels[row][IMAGE]
    if column == FIRST_FINDING:
        column += int(random.integers(len(FINDINGS)))
    what = f"{tables.labels[0][column]} is {text[:40]!r} in line {row + 1}"
    if meant is None:
        cells[column] = in_quotes(text)
        # Of an image without a file the sentence names images/.
        must_say = (
            line_of("", row + 1, name, text) if column == IMAGE else line_of(LABELS, row + 1, name)
        )
        return must_refuse(what, folder, tables.files(), must_say, layout=OWN)
    for other in tables.labels if column == SPLIT else []:  # no patient is in two parts
        other[SPLIT] = meant if other[PATIENT] == cells[PATIENT] else other[SPLIT]
    cells[column] = meant
    files = tables.files()
    cells[column] = text
    return must_read_own(what, folder, tables.files(), files)


def _image_name(random: Random, folder: Path, turn: int) -> Case:
    """An image has an odd name, and everything uses this name: both tables and its file."""
    form = NAME_FORMS[turn]
    tables = own_tables(random)
    row = int(random.integers(1, len(NAMES) + 1))
    old, new = tables.labels[row][IMAGE], form.format(tables.labels[row][IMAGE])
    for cells in (*tables.labels, *tables.boxes):
        cells[0] = new if cells[0] == old else cells[0]
    path = {"../{}": old}.get(form, f"images/{new}")
    pictures = {path if name == f"images/{old}" else name: data for name, data in images().items()}
    return must_refuse(
        f"{new!r} in line {row + 1}", folder, tables.files(), line_of(LABELS, row + 1, old), pictures, OWN
    )  # fmt: skip


def _header_cell(random: Random, folder: Path, turn: int) -> Case:
    """A finding has a wrong name, or a needed column is not there."""
    tables = own_tables(random)
    rows = tables.labels
    way = (*_BAD_FINDINGS, *_WRONG_HEADERS)[turn]
    must_say = {"no image": "'image'", "no patient": "'patient'", "image in upper case": "'image'"}
    if way == "no finding":
        tables = OwnTables([row[:FIRST_FINDING] for row in rows], tables.boxes[:1])
    elif way == "no row":
        tables = OwnTables(rows[:1], tables.boxes[:1])
    elif way == "image in upper case":
        rows[0][IMAGE] = "Image"
    elif way in must_say:
        column = COLUMNS.index(way.removeprefix("no "))
        tables = tables._replace(labels=[[*row[:column], *row[column + 1 :]] for row in rows])
    else:
        rows[0][FIRST_FINDING + 1] = way
        tables = tables._replace(boxes=tables.boxes[:1])
    say = rf"{LABELS}.*({must_say.get(way, 'finding|column twice|no row')})"
    return must_refuse(f"header: {way!r}", folder, tables.files(), say, layout=OWN)
