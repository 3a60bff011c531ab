"""Reads a text file of a data root strictly: UTF-8, one row per line, no row shorter or longer than the others."""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kacl_jax.data.problems import Problems

_OWN_OR_NIH = (
    "download NIH's from https://nihcc.app.box.com/v/ChestXray-NIHCC; for your own X-rays write it "
    "(docs/data.md shows how)"
)
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}  # of cells, and what they are called
_LINE_BREAK = re.compile(r"\r\n|\r|\n")  # not str.splitlines: that breaks at rare characters, too


class Line(NamedTuple):
    """A row of a CSV file: its line in the file, from 1, and the cells of the columns that were asked for."""

    number: int
    cells: list[str]


def find_plain_or_gz(root: Path, name: str) -> Path | None:
    """The plain file if it exists, else its .gz, else None."""
    return next((p for p in (root / name, root / f"{name}.gz") if p.is_file()), None)


def report_absent(root: Path, names: Sequence[str], problems: Problems) -> None:
    """Adds the Problem of a file that lies in `root` under none of its `names`."""
    others = f"nor {' nor '.join(names[1:])}, " if names[1:] else ""
    problems.add(names[0], f"is not in {root} ({others}nor as .gz)", _OWN_OR_NIH)


def read_text(path: Path, problems: Problems) -> tuple[str, str] | None:
    """(text, sha256 of its unpacked bytes), or None with a Problem."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        problems.add(path.name, f"cannot be read ({error})", "copy the file again")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        problems.add(path.name, "is not UTF-8 text", "save the file as UTF-8", f"line {line}")
        return None
    if "\0" in text:
        line = len(_LINE_BREAK.findall(text[: text.index("\0")])) + 1
        fix = "save the file as UTF-8, or copy it again"
        problems.add(path.name, "has a zero byte, which no text has", fix, f"line {line}")
        return None
    return text, hashlib.sha256(data).hexdigest()


def text_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text without spaces around it) of every line that is not blank."""
    for number, line in enumerate(_LINE_BREAK.split(text), 1):
        if line.strip():
            yield number, line.strip()


def csv_header(name: str, text: str, problems: Problems, separator: str = ",") -> list[str] | None:
    """The names of the columns, or None with a Problem."""
    cells = _cells(name, 1, _LINE_BREAK.split(text, maxsplit=1)[0], problems, separator)
    return None if cells is None else [cell.strip() for cell in cells]


def csv_lines(
    name: str,
    text: str,
    columns: Sequence[Sequence[str]],
    problems: Problems,
    separator: str = ",",
) -> Iterator[Line]:
    """Every row below the header that is not blank. A row that cannot be read rightly becomes a Problem instead.

    columns: the possible spellings of each column. If one is missing or there twice, this yields nothing.
    separator: one of `SEPARATORS`.
    """
    lines = _LINE_BREAK.split(text)
    if lines[-1].strip():
        fix = "compare its end with the original; if nothing is missing, add a line break"
        what = "does not end with a line break, so that its last row may be cut off"
        problems.add(name, what, fix, f"line {len(lines)}")
    header = csv_header(name, lines[0], problems, separator) or []
    places = _find_columns(name, header, columns, problems)
    if places is None:
        return
    named = max((k + 1 for k, cell in enumerate(header) if cell), default=0)
    width: int | None = None
    for number, line in enumerate(lines[1:], 2):
        if not line.strip(f"{separator} \t"):
            continue
        cells = _cells(name, number, line, problems, separator)
        if cells is None:
            continue
        if width is None:
            width = max(min(len(cells), len(header)), max(places) + 1)
        if len(cells) < width:
            fix = "complete the row"
            problems.add(name, "has a row with too few cells", fix, f"row {number}")
        elif any(cell.strip() for cell in cells[named:]):
            fix = f"put a cell that holds a {SEPARATORS[separator]} in quotation marks, or delete what is too much"
            problems.add(name, "has a row with too many cells", fix, f"row {number}")
        else:
            yield Line(number, [cells[place].strip() for place in places])


def _cells(
    name: str, number: int, line: str, problems: Problems, separator: str
) -> list[str] | None:
    """The cells of one line. A line is parsed alone, so that a stray quotation mark cannot swallow the next rows."""
    if '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        what = "has a quotation mark that its line does not close"
        fix = "delete the quotation mark, or the line break inside the cell"
        problems.add(name, what, fix, f"row {number}")
        return None


def _find_columns(
    name: str, header: Sequence[str], columns: Sequence[Sequence[str]], problems: Problems
) -> list[int] | None:
    """The place of each column in the header, or None with Problems."""
    places = []
    for spellings in columns:
        found = [place for place, cell in enumerate(header) if cell in spellings]
        if len(found) == 1:
            places += found
        elif found:
            fix = "keep one of them"
            problems.add(name, "has a column twice", fix, " and ".join(header[p] for p in found))
        else:
            hint = (
                "; its cells are separated by ';', not by commas"
                if header and ";" in header[0]
                else ""
            )
            fix = f"write this name into the header{hint}"
            problems.add(name, "has no column", fix, " or ".join(map(repr, spellings)))
    return places if len(places) == len(columns) else None
