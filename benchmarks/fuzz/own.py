"""Mutations of a data root in the simple layout: its two tables by form, by cell, by line and by byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.fuzz import own_strict
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.own_box_cells import box_cell
from benchmarks.fuzz.own_cases import (
    AGE,
    FIRST_FINDING,
    OWN,
    SEX,
    SPLIT,
    VIEW,
    must_read_own,
    own_layout,
)
from benchmarks.fuzz.own_label_cells import label_cell
from benchmarks.fuzz.own_roots import (
    BOXES,
    FINDINGS,
    LABELS,
    NAMES,
    OwnTables,
    images,
    more_images,
    own_tables,
)
from benchmarks.fuzz.scene import Kind, Random, take
from benchmarks.fuzz.table_cases import Files, by_strict, line_of, must_refuse
from benchmarks.fuzz.table_forms import FORMS, Form
from benchmarks.fuzz.table_lines import change_bytes, change_line


def _labels_with_points(random: Random, tables: OwnTables) -> Files:
    points = {"1": "1.0", "0": "0.0", "-1": "-1.0"}
    for row in tables.labels[1:]:
        row[FIRST_FINDING:] = [
            points.get(cell, cell) if random.random() < 0.7 else cell
            for cell in row[FIRST_FINDING:]
        ]
    return tables.files()


def _upper_splits(random: Random, tables: OwnTables) -> Files:
    for row in tables.labels[1:]:
        row[SPLIT] = str(random.choice([row[SPLIT].upper(), row[SPLIT].title(), row[SPLIT]]))
    return tables.files()


def _numbered_rows(random: Random, tables: OwnTables) -> Files:
    """A first column without a name, as pandas writes it."""
    rows = [["" if k == 0 else str(k - 1), *row] for k, row in enumerate(tables.labels)]
    return tables._replace(labels=rows).files()


def _other_rows(random: Random, tables: OwnTables) -> Files:
    header, *rows = tables.labels
    return tables._replace(
        labels=[header, *(rows[k] for k in random.permutation(len(rows)))]
    ).files()


_FORMS: dict[str, Form] = {
    **FORMS,
    "1.0 and 0.0": _labels_with_points,
    "splits in upper case": _upper_splits,
    "a first column without a name": _numbered_rows,
    "another order of the rows": _other_rows,
}
_LESS = ("no annotations.csv", "no row of a box", "only needed columns", "no split", "blank splits")


def _harmless(random: Random, folder: Path, turn: int) -> Case:
    what = take([*_FORMS, *_LESS, "more files"], turn)
    tables = own_tables(random)
    files = tables.files()
    if what == "more files":
        return must_read_own(what, folder, files, files, pictures=images() | more_images())
    if what in _FORMS:
        return must_read_own(what, folder, _FORMS[what](random, tables), files)
    if what in ("no annotations.csv", "no row of a box"):
        meant = tables._replace(boxes=tables.boxes[:1]).files()
        files = {LABELS: files[LABELS]} if what.endswith(BOXES) else meant
        return must_read_own(what, folder, files, meant)
    blank = (SPLIT, SEX, AGE, VIEW) if what == "only needed columns" else (SPLIT,)
    for row in tables.labels[1:]:
        for column in blank:
            row[column] = ""
    meant = tables.files()
    if what != "blank splits":
        rows = [[cell for k, cell in enumerate(row) if k not in blank] for row in tables.labels]
        files = tables._replace(labels=rows).files()
    else:
        files = meant
    return must_read_own(what, folder, files, meant)


def _row(random: Random, folder: Path, turn: int) -> Case:
    """One line of one of the two files, which may be the header."""
    file = str(random.choice([LABELS, BOXES]))
    files = own_tables(random).files()
    what, files[file] = change_line(random, files[file], turn)
    return by_strict(f"{file}: {what}", folder, files, OWN)


def _byte(random: Random, folder: Path, turn: int) -> Case:
    file = str(random.choice([LABELS, BOXES]))
    what, files = change_bytes(random, own_tables(random), file, turn)
    return by_strict(what, folder, files, OWN)


def _uncertain(random: Random, folder: Path, turn: int) -> Case:
    """What -1 becomes by each rule; without a rule it must be refused, if there is one."""
    rule = take([*own_strict.UNCERTAIN, "refuse"], turn)
    layout, tables = own_layout(rule), own_tables(random)
    share = 0 if turn % 8 == 7 else random.uniform(0.05, 1)
    places = []
    for row, column in np.ndindex(len(NAMES), len(FINDINGS)):
        cells = tables.labels[row + 1]
        cells[FIRST_FINDING + column] = str(random.choice(["1", "0", ""]))
        if random.random() < share:
            places.append((row + 1, FIRST_FINDING + column))
    if share and not places:
        places = [(1, FIRST_FINDING)]
    for row, column in places:
        tables.labels[row][column] = {"positive": "1", "negative": "0"}.get(rule, "")
    meant = tables.files()
    for row, column in places:
        tables.labels[row][column] = str(random.choice(["-1", "-1.0"]))
    what = f"{rule}: {len(places)} of -1"
    if rule == "refuse" and places:
        row, column = places[0]
        must_say = rf"{line_of(LABELS, row + 1, NAMES[row - 1])}.*uncertain="
        return must_refuse(what, folder, tables.files(), must_say, layout=layout)
    return must_read_own(what, folder, tables.files(), meant, layout)


KINDS: dict[str, Kind] = {
    "own_harmless": _harmless,
    "own_label_cell": label_cell,
    "own_box_cell": box_cell,
    "own_row": _row,
    "own_byte": _byte,
    "own_uncertain": _uncertain,
}
