"""Mutations of the four text files by line and by byte."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.roots import (
    BOXES,
    LABELS,
    TEST,
    TRAIN_VAL,
    join_rows,
    small_tables,
)
from benchmarks.fuzz.scene import Kind, Random, take
from benchmarks.fuzz.table_cases import (
    ALL_FILES,
    by_strict,
    line_of,
    must_refuse,
)
from benchmarks.fuzz.table_forms import AnyTables, quote


def _layout(random: Random, folder: Path, turn: int) -> Case:
    """One fault in the form of a line of the label table or of the box table."""
    way = take(_LAYOUTS, turn)
    tables = small_tables(random)
    file = str(random.choice([LABELS, BOXES]))
    rows = tables.labels if file == LABELS else tables.boxes
    # The first row below the header says how many cells a row has.
    row = int(random.integers(2, len(rows)))
    files = tables.files() | {file: _LAYOUTS[way](random, [[*cells] for cells in rows], row)}
    whole_file = way in ("no line break at the end", "a column twice", "UTF-16")
    must_say = re.escape(file) if whole_file else line_of(file, row + 1, rows[row][0])
    return must_refuse(f"{file}: {way}, line {row + 1}", folder, files, must_say)


def _in_cell(
    change: Callable[[Random, str], str],
) -> Callable[[Random, list[list[str]], int], bytes]:
    def changed(random: Random, rows: list[list[str]], row: int) -> bytes:
        column = int(random.integers(len(rows[row])))
        rows[row][column] = change(random, rows[row][column])
        return join_rows(rows)

    return changed


def _break_cell(random: Random, cell: str) -> str:
    cut = int(random.integers(0, len(cell) + 1))
    return f'"{cell[:cut]}\n{cell[cut:]}"'


def _foreign_bytes(random: Random, rows: list[list[str]], row: int) -> bytes:
    rows[row][int(random.integers(len(rows[row])))] += "ü"
    return join_rows(rows).replace("ü".encode(), b"\xfc")


def _short_row(random: Random, rows: list[list[str]], row: int) -> bytes:
    """The row ends within its cells, or one of its cells is missing."""
    cut = int(random.integers(1, len(rows[row])))
    rows[row] = rows[row][:cut] if random.random() < 0.5 else rows[row][:cut] + rows[row][cut + 1 :]
    return join_rows(rows)


def _long_row(random: Random, rows: list[list[str]], row: int) -> bytes:
    rows[row] = [*rows[row], *([""] * int(random.integers(0, 2))), "7"]
    return join_rows(rows)


def _open_end(random: Random, rows: list[list[str]], row: int) -> bytes:
    """The file is cut off in its last row."""
    data = join_rows(rows)
    last = len(data) - len(join_rows(rows[-1:]))
    return data[: int(random.integers(last + 1, len(data)))]


def _column_twice(random: Random, rows: list[list[str]], row: int) -> bytes:
    needed = [
        k
        for k, cell in enumerate(rows[0])
        if re.search("[Ii]mage I|Label|Pat|View|^y$|^w$|h]$", cell)
    ]
    column = int(random.choice(needed))
    others = [rows[0][column], *(cells[column] for cells in random.permutation(rows[1:]))]
    place = int(random.choice([0, len(rows[0])]))
    return join_rows(
        [*c[:place], str(other), *c[place:]] for c, other in zip(rows, others, strict=True)
    )


_LAYOUTS: dict[str, Callable[[Random, list[list[str]], int], bytes]] = {
    "a quotation mark before a cell": _in_cell(lambda random, cell: '"' + cell),
    "a line break in a cell": _in_cell(_break_cell),
    "a zero byte": _in_cell(lambda random, cell: cell + "\0"),
    "a byte that is not UTF-8": _foreign_bytes,
    "UTF-16": lambda random, rows, row: join_rows(rows).decode().encode("utf-16"),
    "too few cells": _short_row,
    "too many cells": _long_row,
    "no line break at the end": _open_end,
    "a column twice": _column_twice,
}

_LISTS = (
    *(
        "twice",
        "in both",
        "in none",
        "without a row",
        "a folder",
        "a zero byte",
        "not UTF-8",
        "joined",
    ),
)


def _list(random: Random, folder: Path, turn: int) -> Case:
    way = take(_LISTS, turn)
    tables = small_tables(random)
    file = str(random.choice([TRAIN_VAL, TEST]))
    names, others = (
        (tables.train_val, tables.test) if file == TRAIN_VAL else (tables.test, tables.train_val)
    )
    line = int(random.integers(len(names) - 1))
    name = names[line]
    place = int(random.integers(len(names)))
    if way == "twice":
        names.insert(place, name)
    elif way == "in both":
        others.insert(place % len(others), name)
    elif way == "in none":
        del names[line]
    elif way == "joined":
        name = names[line : line + 2] = [names[line] + names[line + 1]]
    else:
        new = {"without a row": "00000099_000.png", "a folder": f"images/{name}"}
        name = names[line] = new.get(way, name + ("\0" if way == "a zero byte" else "ü"))
    files = tables.files()
    files[file] = files[file].replace("ü".encode(), b"\xfc")
    place = line_of("", line + 1, str(name).strip("\0ü"))
    must_say = rf"(?=.*({LABELS}|{TRAIN_VAL}|{TEST})){place}"
    return must_refuse(f"{file}: {way}, {name!r}", folder, files, must_say)


def _row(random: Random, folder: Path, turn: int) -> Case:
    """One line of one of the four files, which may be the header."""
    file = str(random.choice(ALL_FILES))
    files = small_tables(random).files()
    what, files[file] = change_line(random, files[file], turn)
    return by_strict(f"{file}: {what}", folder, files)


def change_line(random: Random, data: bytes, turn: int) -> tuple[str, bytes]:
    """(what, the text with one line deleted, repeated, swapped, cut, joined, broken or with a quotation mark)."""
    lines = data.decode().splitlines()
    k = int(random.integers(len(lines) - 1))
    cut = int(random.integers(len(lines[k]) + 1))
    way = take(("delete", "repeat", "swap", "cut", "join", "quote", "break"), turn)
    if way == "delete":
        del lines[k]
    elif way == "repeat":
        lines.insert(int(random.integers(len(lines) + 1)), lines[k])
    elif way == "swap":
        other = int(random.integers(len(lines)))
        lines[k], lines[other] = lines[other], lines[k]
    elif way == "cut":
        lines[k] = lines[k][:cut]
    elif way == "join":
        lines[k : k + 2] = [lines[k] + lines[k + 1]]
    else:
        lines[k] = lines[k][:cut] + {"quote": '"', "break": "\n"}[way] + lines[k][cut:]
    return f"{way} line {k + 1} at {cut}", "".join(f"{line}\n" for line in lines).encode()


def damage(random: Random, data: bytes, turn: int, end: int | None = None) -> tuple[str, bytes]:
    """(what, the data with one to three bits flipped, bytes inserted or deleted, or with its end cut off).

    end: only bytes before it are changed.
    """
    way = take(("flip", "insert", "delete", "truncate"), turn)
    places = random.integers(
        0, end or len(data), 1 if way == "truncate" else int(random.choice([1, 1, 1, 2, 3]))
    )
    changed = bytearray(data)
    for place in sorted(map(int, places), reverse=True):
        if way == "flip":
            changed[place] ^= 1 << int(random.integers(8))
        elif way == "insert":
            odd = [*b'\0\r\n",; |_0.-\x1c', int(random.integers(256))]
            changed.insert(place, int(random.choice(odd)))
        elif way == "delete":
            del changed[place]
        else:
            del changed[place:]
    return f"{way} at {sorted(map(int, places))}", bytes(changed)


def _byte(random: Random, folder: Path, turn: int) -> Case:
    file = str(random.choice(ALL_FILES))
    what, files = change_bytes(random, small_tables(random), file, turn)
    return by_strict(what, folder, files)


def change_bytes(
    random: Random, tables: AnyTables, file: str, turn: int
) -> tuple[str, dict[str, bytes]]:
    """(what, the files of the tables with damage in one of them: in a plain, a quoted or a .gz file)."""
    form = str(random.choice(["plain", "plain", "quoted", "gz"]))
    files = tables.files(quote) if form == "quoted" else tables.files()
    data = files.pop(file)
    stored = f"{file}.gz" if form == "gz" else file
    what, changed = damage(random, gzip.compress(data, mtime=0) if form == "gz" else data, turn)
    return f"{stored} {form}: {what}", {**files, stored: changed}


KINDS: dict[str, Kind] = {
    "table_layout": _layout,
    "table_list": _list,
    "table_row": _row,
    "table_byte": _byte,
}
