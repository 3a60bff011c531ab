"""Harmless forms of the four text files and of the images: the same values must come out."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz import strict
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.own_roots import OwnTables
from benchmarks.fuzz.roots import (
    LABELS,
    NAMES,
    TEST,
    TRAIN_VAL,
    Tables,
    encode_images,
    greys,
    images,
    small_tables,
)
from benchmarks.fuzz.scene import Random, take
from benchmarks.fuzz.table_cases import (
    AGE,
    LABEL,
    NAME,
    PATIENT,
    SEX,
    VIEW,
    Files,
    must_read,
)

AnyTables = Tables | OwnTables
Form = Callable[[Random, Any], Files]


def quote(rows: Iterable[Sequence[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def _some(random: Random, files: Files) -> set[str]:
    return set(random.choice([*files], int(random.integers(1, len(files) + 1)), replace=False))


def _in_files(change: Callable[[Random, bytes], bytes]) -> Form:
    """The change in some of the files."""

    def changed(random: Random, tables: AnyTables) -> Files:
        files = tables.files()
        for name in sorted(_some(random, files)):
            files[name] = change(random, files[name])
        return files

    return changed


def _in_tables(
    change: Callable[[Random, list[list[str]]], list[list[str]]],
) -> Form:
    """The change in the cells of the label table and of the box table."""
    return lambda random, tables: tables._replace(
        labels=change(random, tables.labels), boxes=change(random, tables.boxes)
    ).files()


def _packed(random: Random, tables: AnyTables) -> Files:
    files = tables.files()
    for name in _some(random, files):
        files[f"{name}.gz"] = gzip.compress(files.pop(name))
    return files


def _blank_lines(random: Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    for place in random.integers(1, len(lines) + 1, 3):
        blank = [b"\n", b"\r\n", b"  \n"]
        lines.insert(int(place), blank[int(random.integers(3))])
    return b"".join(lines)


def _blank_rows(random: Random, rows: list[list[str]]) -> list[list[str]]:
    place = int(random.integers(1, len(rows) + 1))
    return [*rows[:place], [""] * len(rows[0]), *rows[place:]]


def _spaces(random: Random, data: bytes) -> bytes:
    around = rb" \1 " if random.random() < 0.5 else b"\\1\t"
    return re.sub(rb"([^,\r\n]+)", around, data)


def _more_columns(random: Random, rows: list[list[str]]) -> list[list[str]]:
    place = int(random.integers(0, len(rows[0]) + 1))
    cells = ["Hospital", *(str(random.choice(["Zürich", "", "7"])) for _ in rows[1:])]
    return [[*row[:place], cell, *row[place:]] for row, cell in zip(rows, cells, strict=True)]


def _other_order(random: Random, rows: list[list[str]]) -> list[list[str]]:
    order = random.permutation(len(rows[0]))
    return [[row[k] for k in order] for row in rows]


def _blank_cells(random: Random, rows: list[list[str]]) -> list[list[str]]:
    header, *rest = rows
    return [header, *(row + [""] * int(random.choice([0, 0, 1, 3])) for row in rest)]


def _few_columns(random: Random, tables: Tables) -> Files:
    """The columns that docs/data.md gives for a user's own images."""
    labels = [[row[k] for k in (NAME, LABEL, PATIENT, AGE, SEX, VIEW)] for row in tables.labels]
    boxes = [tables.boxes[0], *(row[:6] for row in tables.boxes[1:])]
    return tables._replace(labels=labels, boxes=boxes).files()


def _of_2020(random: Random, tables: Tables) -> Files:
    tables.labels[0][SEX] = "Patient Sex"
    files = tables.files()
    return {LABELS.replace(".csv", "_v2020.csv"): files.pop(LABELS), **files}


def _open_list_ends(random: Random, tables: Tables) -> Files:
    files = tables.files()
    return files | {name: files[name].rstrip(b"\n") for name in (TRAIN_VAL, TEST)}


def _unknown_cells(random: Random, tables: Tables) -> Files:
    """A few cells of sex, view and age that nobody can read are unknown, and so are blank ones."""
    for column, text in ((SEX, "x"), (VIEW, "LL"), (AGE, "adult")):
        blank, other = random.choice(np.arange(1, len(NAMES) + 1), 2, replace=False)
        tables.labels[blank][column], tables.labels[other][column] = "", text
    return tables.files()


def _any(random: Random, tables: AnyTables) -> Files:
    return tables.files()


# Of any layout.
FORMS: dict[str, Form] = {
    "unchanged": _any,
    "quotation marks": lambda random, tables: tables.files(quote),
    "CRLF": _in_files(lambda random, data: data.replace(b"\n", b"\r\n")),
    "BOM": _in_files(lambda random, data: b"\xef\xbb\xbf" + data),
    "gz": _packed,
    "blank lines": _in_files(_blank_lines),
    "blank rows": _in_tables(_blank_rows),
    "spaces": _in_files(_spaces),
    "another order of the columns": _in_tables(_other_order),
    "blank cells at the end": _in_tables(_blank_cells),
}
_HARMLESS: dict[str, Form] = {
    **FORMS,
    "more columns": _in_tables(_more_columns),
    "few columns": _few_columns,
    "of 2020": _of_2020,
    "lists without a line break at the end": _open_list_ends,
    "a few unknown cells": _unknown_cells,
    "full 16 bits": _any,
    "one constant image": _any,
}


def harmless(random: Random, folder: Path, turn: int) -> Case:
    what = take(_HARMLESS, turn)
    tables = small_tables(random)
    truth = strict.read(tables.files(), NAMES)
    files = _HARMLESS[what](random, tables)
    if what == "a few unknown cells":
        truth = strict.read(files, NAMES)
    elif not np.array_equal(truth, strict.read(files, NAMES)):
        raise AssertionError(f"the strict parser reads other values: {what}")
    pictures = images()
    if what == "full 16 bits":
        pictures = encode_images([grey * 65535 for grey in greys()], np.uint16)
    elif what == "one constant image":
        constant = int(random.integers(len(NAMES)))
        pictures = encode_images(
            [
                np.full_like(grey, 90) if k == constant else grey * 255
                for k, grey in enumerate(greys())
            ]
        )
    return must_read(what, folder, files, truth, pictures)
