"""Mutations of annotations.csv by cell and of all its boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.own_cases import FIRST_FINDING, OWN, must_read_own
from benchmarks.fuzz.own_roots import BOXES, FINDINGS, NAMES, SIZES, OwnTables, images, own_tables
from benchmarks.fuzz.roots import FRAME, refused_case, write_root
from benchmarks.fuzz.scene import Kind, Random, take
from benchmarks.fuzz.table_cases import line_of, must_refuse
from benchmarks.fuzz.tables import BAD_NUMBERS, in_quotes

Change = Callable[[Random, list[str]], None]


def _sides(row: list[str]) -> np.ndarray:
    """x, y, w, h."""
    return np.array(row[2:], float)


def _set_sides(row: list[str], sides: np.ndarray) -> None:
    row[2:] = [f"{side:.10g}" for side in sides]


def _in_fractions(random: Random, row: list[str]) -> None:
    _set_sides(row, _sides(row) / np.tile(SIZES[row[0]], 2))


def _beyond(random: Random, row: list[str]) -> None:
    """The box ends 0.1 px or more to the right of its image, or below it."""
    axis, sides = int(random.integers(2)), _sides(row)
    over = float(random.choice([0.1, 1, 700]))
    sides[axis] = round(SIZES[row[0]][axis] - sides[axis + 2] + over, 1)
    _set_sides(row, sides)


def _in_a_turned_image(random: Random, row: list[str]) -> None:
    """The box fills the image as it would be with width and height swapped."""
    _set_sides(row, np.array([0, 0, *SIZES[row[0]][::-1]]))


def _cell(columns: tuple[int, ...], text: str) -> Change:
    def change(random: Random, row: list[str]) -> None:
        row[int(random.choice(columns))] = in_quotes(text)

    return change


_BAD_BOXES: dict[str, Change] = {
    "in fractions": _in_fractions,
    "beyond its image": _beyond,
    "in a turned image": _in_a_turned_image,
    **{f"a side is {text[:9]!r} of {len(text)}": _cell((2, 3, 4, 5), text) for text in BAD_NUMBERS},
    **{f"x or y is {text}": _cell((2, 3), text) for text in ("-0.5", "-1", "75", "1e4", "1e999")},
    **{f"w or h is {text}": _cell((4, 5), text) for text in ("0", "-3", "0.99", ".25", "-0", "1e-9", "75")},
    **{f"finding {text[:24]!r}": _cell((1,), text) for text in
       ("Noddule", "opacity", "", "No Finding", "Opacity|Rib fracture", "patient", "image", "=1", "O" * 200_000)},
    **{f"image {text!r}": _cell((0,), text) for text in
       ("", "other.png", "Thorax 00.jpg", "thorax 00.png", "images/Thorax 00.png")},
}  # fmt: skip


def _touching(random: Random, row: list[str]) -> None:
    sides = _sides(row)
    sides[:2] = np.array(SIZES[row[0]]) - sides[2:]
    _set_sides(row, sides.round(1))


def _whole(random: Random, row: list[str]) -> None:
    _set_sides(row, np.array([0, 0, *SIZES[row[0]]]))


# (what the cells of x or w say, what they mean)
_GOOD_SIDES = (
    ("00.50", "0.5"),
    (".5", "0.5"),
    ("1.", "1"),
    ("+2", "2"),
    ("20e-1", "2"),
)
_GOOD_BOXES: dict[str, Change] = {
    "touches the edges": _touching,
    "the whole image": _whole,
    "1 px": lambda random, row: _set_sides(row, np.array([*_sides(row)[:2], 1, 1])),
    "of an image without the finding": lambda random, row: None,
    "of two findings": lambda random, row: None,
}


def box_cell(random: Random, folder: Path, turn: int) -> Case:
    ways: list[Kind] = [
        *[_bad_box] * len(_BAD_BOXES),
        *[_good_box] * (len(_GOOD_SIDES) + len(_GOOD_BOXES)),
        *[_box_twice] * 2,
        *[_all_boxes] * 4,
    ]
    turn %= len(ways)
    return ways[turn](random, folder, turn - ways.index(ways[turn]))


def _tables_and_row(random: Random) -> tuple[OwnTables, int]:
    tables = own_tables(random)
    return tables, int(random.integers(1, len(tables.boxes)))


def _bad_box(random: Random, folder: Path, turn: int) -> Case:
    tables, row = _tables_and_row(random)
    way = take(_BAD_BOXES, turn)
    cells, name = tables.boxes[row], tables.boxes[row][0]
    _BAD_BOXES[way](random, cells)
    what = f"{way}: {','.join(cells)[:80]} in line {row + 1}"
    others = (name, cells[0][:40]) if cells[0] else ()
    return must_refuse(what, folder, tables.files(), line_of(BOXES, row + 1, *others), layout=OWN)


def _good_box(random: Random, folder: Path, turn: int) -> Case:
    tables, row = _tables_and_row(random)
    cells = tables.boxes[row]
    if turn < len(_GOOD_SIDES):
        text, cells[2] = _GOOD_SIDES[turn]
        cells[4] = "1"
        meant = tables.files()
        cells[2] = text
        return must_read_own(f"x is {text!r} in line {row + 1}", folder, tables.files(), meant)
    way = take(_GOOD_BOXES, turn - len(_GOOD_SIDES))
    _GOOD_BOXES[way](random, cells)
    if way == "of two findings":
        other = str(random.choice([f for f in FINDINGS if f != cells[1]]))
        tables.boxes.append([cells[0], other, *cells[2:]])
    elif way == "of an image without the finding":
        column = FIRST_FINDING + FINDINGS.index(cells[1])
        tables.labels[1 + NAMES.index(cells[0])][column] = str(random.choice(["0", "", "-1"]))
    return must_read_own(f"{way}: {','.join(cells)}", folder, tables.files(), tables.files())


def _box_twice(random: Random, folder: Path, turn: int) -> Case:
    tables, row = _tables_and_row(random)
    cells = [*tables.boxes[row]]
    if turn:
        cells[2:] = [f"{side:.3f}" for side in _sides(cells)]
    second = int(random.integers(row + 1, len(tables.boxes) + 1))
    tables.boxes.insert(second, cells)
    must_say = line_of(BOXES, second + 1)
    what = f"lines {row + 1} and {second + 1} are one box"
    return must_refuse(what, folder, tables.files(), must_say, layout=OWN)


def _all_boxes(random: Random, folder: Path, turn: int) -> Case:
    """All boxes in another form: corners, of which no sum may leave the image, fractions, or in NIH's frame."""
    way = ("corners", "near corners", "fractions", "NIH's frame")[turn]
    tables = own_tables(random)
    for cells in tables.boxes[1:]:
        sides, frame = _sides(cells), np.tile(SIZES[cells[0]], 2)
        if way == "near corners":
            sides[:2] = (sides[:2] / 2).round(1)
        if way.endswith("corners"):
            sides[2:] += sides[:2]
        elif way == "fractions":
            sides /= frame
        else:
            sides *= FRAME / frame
        _set_sides(cells, sides)
    root = write_root(folder, tables.files(), images())
    return refused_case(f"all boxes: {way}", lambda: OWN.doors(root, None), BOXES)
