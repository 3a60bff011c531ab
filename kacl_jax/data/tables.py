"""Parses NIH's four text files into Tables; every mistake in them becomes a Problem.

Training and --mode=verify both use this parser.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kacl_jax.runtime.errors import UserError

FINDINGS_8 = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration",
    "Mass", "Nodule", "Pneumonia", "Pneumothorax",
)  # fmt: skip
FINDINGS_14 = (
    *FINDINGS_8,
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip

LABEL_FILES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
BOX_FILE = "BBox_List_2017.csv"
LIST_FILES = ("train_val_list.txt", "test_list.txt")
NIH_SIDE = 1024  # boxes in BOX_FILE are in pixels of a 1024 × 1024 frame, whatever the file's size

_NO_FINDING = "No Finding"
_LABEL_ALIASES = {"Infiltrate": "Infiltration"}  # the spelling in BBox_List_2017.csv
_MAX_AGE = 120  # years; the 2017 file has ages up to 414
_DAYS_OR_MONTHS_PER_YEAR = {"Y": 1, "M": 12, "D": 365}
_AGE = re.compile(r"(\d+)([YMD]?)")
_BARE_FILE_NAME = re.compile(r"[^/\\\x00.][^/\\\x00]*")
_DOWNLOAD = "download it from https://nihcc.app.box.com/v/ChestXray-NIHCC"
_MAX_EXAMPLES = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """One kind of mistake in one file: what is wrong, the first examples, how often it occurs, how to correct it."""

    file: str
    what: str
    fix: str
    examples: tuple[str, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        examples = ", ".join(self.examples)
        more = f" and {self.count - len(self.examples)} more" if examples else ""
        more = more if self.count > len(self.examples) else ""
        return (
            f"{self.file}: {self.what}{': ' if examples else ''}{examples}{more}. Fix: {self.fix}."
        )


class Problems:
    """Collects mistakes. Mistakes of one kind in one file become one Problem with the first few as examples."""

    def __init__(self) -> None:
        self._examples: dict[tuple[str, str, str], list[str]] = {}

    def add(self, file: str, what: str, fix: str, example: str = "") -> None:
        self._examples.setdefault((file, what, fix), []).append(example)

    def all(self) -> list[Problem]:
        return [
            Problem(file, what, fix, tuple(e for e in examples[:_MAX_EXAMPLES] if e), len(examples))
            for (file, what, fix), examples in self._examples.items()
        ]


@dataclass(frozen=True)
class Row:
    """One image's row in the label file."""

    patient: int
    labels: frozenset[str]
    sex: str
    age: int
    view: str


@dataclass
class Tables:
    """The content of the four text files. A line that cannot be parsed is left out here and becomes a Problem."""

    root: Path
    rows: dict[str, Row] = field(default_factory=dict)
    # Names of images with a row in the label file, even a wrong row.
    labelled_images: set[str] = field(default_factory=set)
    # X, y, w, h in pixels of NIH's frame.
    boxes: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    lists: dict[str, set[str]] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RootCheck:
    """A check of a whole root: what its tables say, where mistakes are reported, and who hears how far it is.

    broken_file_problems: for image files that cannot be read. progress: called with (images done, images in all).
    """

    tables: Tables
    problems: Problems
    broken_file_problems: Problems
    progress: Progress | None = None


def read_tables(root: Path | str, problems: Problems) -> Tables:
    """Parses the label file, the box file and both lists, and checks them against each other."""
    tables = Tables(Path(root).expanduser())
    if not tables.root.is_dir():
        what = "is not a folder" if tables.root.exists() else "is not there"
        raise UserError(
            f"data root {tables.root} {what}; give NIH's folder by --config.data.root (kacl_jax.prepare: --root)"
        )
    if not any(tables.root.iterdir()):
        raise UserError(
            f"data root {tables.root} is empty; looked for images/ (or images_001/images …), "
            f"{' or '.join(LABEL_FILES)}, {BOX_FILE} and {' and '.join(LIST_FILES)}"
        )
    label_name, label_text = _read_label_file(tables, problems)
    if label_text is not None:
        _parse_labels(label_name, label_text, tables, problems)
    box_text = _read_text(BOX_FILE, tables, problems)
    if box_text is not None:
        _parse_boxes(box_text, tables, problems)
    for name in LIST_FILES:
        text = _read_text(name, tables, problems)
        if text is not None:
            _parse_list(name, text, tables, problems)
    if tables.labelled_images and len(tables.lists) == len(LIST_FILES):
        _compare_lists(label_name, tables, problems)
    return tables


def text_file_paths(root: Path) -> list[Path]:
    """The paths of the text files that `read_tables` reads, plain or .gz."""
    paths = (_find_plain_or_gz(root, name) for name in (*LABEL_FILES, BOX_FILE, *LIST_FILES))
    return [path for path in paths if path is not None]


def _find_plain_or_gz(root: Path, name: str) -> Path | None:
    """The plain file if it exists, else its .gz, else None."""
    return next((p for p in (root / name, root / f"{name}.gz") if p.is_file()), None)


def _read_label_file(tables: Tables, problems: Problems) -> tuple[str, str | None]:
    names = [name for name in LABEL_FILES if _find_plain_or_gz(tables.root, name)]
    if len(names) == 2:
        fix = "keep the one you mean: their labels differ"
        problems.add(names[0], f"lies beside {names[1]}", fix)
        return names[0], None
    if not names:
        what = f"is not in {tables.root} (nor {LABEL_FILES[1]}, nor either as .gz)"
        problems.add(LABEL_FILES[0], what, _DOWNLOAD)
        return LABEL_FILES[0], None
    return names[0], _read_text(names[0], tables, problems)


def _read_text(name: str, tables: Tables, problems: Problems) -> str | None:
    path = _find_plain_or_gz(tables.root, name)
    if path is None:
        problems.add(name, f"is not in {tables.root} (nor as .gz)", _DOWNLOAD)
        return None
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        problems.add(path.name, f"cannot be read ({error})", _DOWNLOAD)
        return None
    tables.checksums[name] = hashlib.sha256(data).hexdigest()
    return text


def _csv_rows(
    name: str, text: str, column_names: Sequence[Sequence[str]], problems: Problems
) -> Iterator[tuple[int, list[str], list[int]]]:
    """Yields (line number in the file, cells, index of each column) for every row that is not empty.

    `column_names` has the possible spellings of each column. If a column is missing, this yields nothing.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [cell.strip() for cell in next(reader, [])]
    columns = []
    for spellings in column_names:
        column = next((header.index(s) for s in spellings if s in header), None)
        if column is None:
            example = " or ".join(map(repr, spellings))
            hint = "; its cells are separated by ';'" if len(header) == 1 and ";" in text else ""
            fix = f"give the header NIH's column names, separated by commas{hint}"
            problems.add(name, "has no column", fix, example)
        else:
            columns.append(column)
    if len(columns) < len(column_names):
        return
    last = max(columns)
    for cells in reader:
        if not any(cells):
            continue
        if len(cells) <= last:
            problems.add(name, "row is too short", "complete the row", f"row {reader.line_num}")
            continue
        yield reader.line_num, cells, columns


_LABEL_COLUMNS = (
    ("Image Index",),
    ("Finding Labels",),
    ("Patient ID",),
    ("Patient Age",),
    ("Patient Gender", "Patient Sex"),
    ("View Position",),
)


def _parse_labels(name: str, text: str, tables: Tables, problems: Problems) -> None:
    findings_of: dict[str, frozenset[str]] = {}  # text of the label cell → its findings
    for number, cells, columns in _csv_rows(name, text, _LABEL_COLUMNS, problems):
        image, labels, patient, age, sex, view = (cells[column].strip() for column in columns)
        where = f"row {number} ({image})"
        if not _check_bare_file_name(image, name, where, problems):
            continue
        if image in tables.labelled_images:
            problems.add(name, "has an image twice", "keep one row per image", where)
            continue
        tables.labelled_images.add(image)
        if labels not in findings_of:
            findings = _parse_finding_labels(labels, name, where, problems)
            if findings is None:
                continue
            findings_of[labels] = findings
        if not (patient.isascii() and patient.isdigit() and int(patient) < 2**31):
            fix = "give every patient a whole number below 2147483648"
            problems.add(name, "Patient ID is no number", fix, f"{where} {patient!r}")
            continue
        tables.rows[image] = Row(int(patient), findings_of[labels], sex, _parse_age(age), view)


def _parse_finding_labels(
    labels: str, name: str, where: str, problems: Problems
) -> frozenset[str] | None:
    """'Mass|Nodule' → its findings; 'No Finding' → the empty set; None if the text is wrong."""
    names = [_LABEL_ALIASES.get(label.strip(), label.strip()) for label in labels.split("|")]
    unknown = [label for label in names if label not in FINDINGS_14 and label != _NO_FINDING]
    for label in unknown:
        problems.add(
            name,
            f"unknown label {label!r}",
            _suggest_label(label, (*FINDINGS_14, _NO_FINDING)),
            where,
        )
    if _NO_FINDING in names and len(names) > 1:
        fix = "keep one of the two"
        problems.add(name, f"{_NO_FINDING!r} beside a finding", fix, f"{where} {labels!r}")
        return None
    return None if unknown else frozenset(names) - {_NO_FINDING}


def _suggest_label(label: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(label, valid, n=1)
    return f"write {close[0]!r}" if close else f"use only {', '.join(valid)}"


def _parse_age(text: str) -> int:
    """'58', '058Y', '013M', '004D' → whole years; -1 if blank, unreadable or above 120."""
    match = _AGE.fullmatch(text)
    if match is None:
        return -1
    years = int(match[1]) // _DAYS_OR_MONTHS_PER_YEAR[match[2] or "Y"]
    return years if years <= _MAX_AGE else -1


def _check_bare_file_name(image: str, name: str, where: str, problems: Problems) -> bool:
    """Whether `image` is a file name without a folder (a path could leave images/); else adds a Problem."""
    if _BARE_FILE_NAME.fullmatch(image):
        return True
    problems.add(name, "Image Index is no plain file name", "give the bare file name", where)
    return False


_BOX_COLUMNS = (("Image Index",), ("Finding Label",), ("Bbox [x",), ("y",), ("w",), ("h]",))


def _parse_boxes(text: str, tables: Tables, problems: Problems) -> None:
    for number, cells, columns in _csv_rows(BOX_FILE, text, _BOX_COLUMNS, problems):
        image, label, *sides = (cells[column].strip() for column in columns)
        finding = _LABEL_ALIASES.get(label, label)
        where = f"row {number} ({image} {label})"
        if finding not in FINDINGS_14:
            problems.add(
                BOX_FILE, f"unknown finding {label!r}", _suggest_label(label, FINDINGS_14), where
            )
            continue
        if tables.labelled_images and image not in tables.labelled_images:
            fix = "delete the row, or add the image to the label file"
            problems.add(BOX_FILE, "names an image that has no label row", fix, where)
            continue
        if (image, finding) in tables.boxes:
            fix = "keep one box per image and finding"
            problems.add(BOX_FILE, "has a second box of one finding", fix, where)
            continue
        xywh = _parse_xywh(sides)
        if xywh is None:
            fix = "give x, y, w, h as numbers with w and h above 0"
            problems.add(BOX_FILE, "is no box", fix, f"{where} {', '.join(sides)}")
            continue
        tables.boxes[image, finding] = xywh


def _parse_xywh(sides: Sequence[str]) -> tuple[float, ...] | None:
    try:
        xywh = tuple(float(side) for side in sides)
    except ValueError:
        return None
    return xywh if all(map(math.isfinite, xywh)) and min(xywh[2:]) > 0 else None


def _parse_list(name: str, text: str, tables: Tables, problems: Problems) -> None:
    images: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        image = line.strip()
        if not image:
            continue
        where = f"line {number} ({image})"
        if image in images:
            problems.add(name, "names an image twice", "delete the second line", where)
        elif tables.labelled_images and image not in tables.labelled_images:
            fix = "delete the line, or add the image to the label file"
            problems.add(name, "names an image that has no label row", fix, where)
        images.add(image)
    tables.lists[name] = images


def _compare_lists(label_name: str, tables: Tables, problems: Problems) -> None:
    train_val, test = (tables.lists[name] for name in LIST_FILES)
    for image in sorted(train_val & test):
        fix = f"take it out of one of them: {LIST_FILES[0]} trains, {LIST_FILES[1]} scores"
        problems.add(LIST_FILES[1], f"names an image that {LIST_FILES[0]} names too", fix, image)
    for image in sorted(tables.labelled_images - train_val - test):
        fix = f"add the image to {LIST_FILES[0]} or {LIST_FILES[1]}"
        problems.add(label_name, "has an image that neither list names", fix, image)
