"""A table with a row per image, and a table of boxes."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kacl_jax.convert.box_units import RawBox, add_boxes
from kacl_jax.convert.checked_rows import (
    NEGATIVE,
    POSITIVE,
    Collection,
    Image,
    parse_label,
    parse_number,
    read_split,
)
from kacl_jax.convert.image_folder import ImageFolder
from kacl_jax.data.findings import how_to_write
from kacl_jax.data.problems import Problems
from kacl_jax.data.text_files import SEPARATORS, Line, csv_header, csv_lines, read_text
from kacl_jax.runtime.errors import UserError

ROLES = ("image", "labels", "findings", "patient", "sex", "age", "view", "split")
BOX_ROLES = ("image", "finding", "x", "y", "w", "h", "x0", "y0", "x1", "y1")
_SIDES = (("x", "y", "w", "h"), ("x0", "y0", "x1", "y1"))

Columns = Mapping[str, Sequence[str]]  # a role → the table's columns for it; one but for findings


class Labels(NamedTuple):
    """How a cell names several findings.

    separators: letters, each of which separates. no_finding: names in lower case that mean none; '': a blank cell.
    """

    separators: str
    no_finding: Names[str]


class BoxTable(NamedTuple):
    """A file of boxes. finding: of all boxes if no column has it, else ''."""

    path: Path
    columns: Columns
    unit: str
    finding: str


def parse_columns(flag: str, text: str, roles: Sequence[str]) -> Columns:
    """'image=File,findings=Mass,Nodule' → {'image': ['File'], 'findings': ['Mass', 'Nodule']}.

    Raises:
        UserError: a role that is none of `roles` or is there twice, no image, or a name without a role.
    """
    columns: dict[str, list[str]] = {}
    last = ""
    for part in text.split(","):
        role, equals, name = (word.strip() for word in part.partition("="))
        if not equals and last == "findings":
            columns[last].append(role)
            continue
        if not equals or role not in roles or role in columns or not name:
            raise UserError(
                f"{flag}={text}: {part.strip()!r} cannot be used; write ROLE=COLUMN once for each role, "
                f"with the roles {', '.join(roles)}"
            )
        last = role
        columns[role] = [name]
    if "image" not in columns:
        raise UserError(f"{flag}={text} names no image column; add image=COLUMN")
    return columns


def read(
    path: Path,
    folder: ImageFolder,
    columns: Columns,
    separator: str,
    labels: Labels,
    box_table: BoxTable | None,
    problems: Problems,
) -> Collection:
    """The rows and the boxes.

    Raises:
        UserError: the columns or the flags do not fit together.
    """
    if "labels" in columns and "findings" in columns:
        raise UserError("--columns names labels= and findings=; give one of them")
    from_boxes = "labels" not in columns and "findings" not in columns
    if from_boxes and box_table is None:
        raise UserError("nothing says what the images show; add labels= or findings= to --columns")
    collection = Collection(findings=tuple(columns.get("findings", ())))
    for line in _lines(path, columns, separator, problems):
        _add_row(line, path.name, folder, columns, labels, collection, problems)
    if "labels" in columns:
        named = {finding for image in collection.images.values() for finding in image.labels}
        collection.findings = tuple(sorted(named, key=lambda name: (name.casefold(), name)))
    if "patient" not in columns:
        collection.notes.append(
            "No column says who the patient is, so each image is a patient of its own. If a patient has several "
            "images, add patient=COLUMN to --columns."
        )
    if box_table:
        raw = _read_boxes(box_table, folder, separator, labels, collection, problems)
        if from_boxes:
            _label_by_boxes(raw, collection)
        _check_labels_of_boxes(raw, collection, box_table.path.name, problems)
        add_boxes(raw, collection, box_table.unit, box_table.path.name, problems)
    if folder.without_ending:
        n, example = len(folder.without_ending), min(folder.without_ending)
        collection.notes.append(
            f"{n:,} names without an ending got the ending of their file: {example}."
        )
    collection.check(path.name, problems)
    return collection


def _lines(path: Path, columns: Columns, separator: str, problems: Problems) -> Iterator[Line]:
    """The rows, with cells in the order of `columns`. Nothing, with Problems, if a column is missing."""
    content = read_text(path, problems)
    if content is None:
        return
    header = csv_header(path.name, content[0], problems, separator)
    if header is None:
        return
    wanted = [name for names in columns.values() for name in names]
    missing = [name for name in wanted if name not in header]
    others = [other for other in SEPARATORS if len(header) == 1 and other in header[0]]
    for name in missing:
        exist = ", ".join(cell for cell in header if cell)[:500]
        fix = f"use its own columns: {exist}" if exist else "give the file a header"
        if others:
            fix = f"its cells seem to be separated by a {SEPARATORS[others[0]]}; give --separator"
        problems.add(path.name, f"has no column {name!r}", fix)
    if not missing:
        spellings = [(name,) for name in wanted]
        yield from csv_lines(path.name, content[0], spellings, problems, separator)


def _add_row(
    line: Line,
    file: str,
    folder: ImageFolder,
    columns: Columns,
    labels: Labels,
    collection: Collection,
    problems: Problems,
) -> None:
    cells = iter(line.cells)
    row = {role: [next(cells) for _ in names] for role, names in columns.items()}
    where = f"row {line.number} ({row['image'][0][:200]})"
    source = folder.find(row["image"][0], file, where, problems)
    if source is None:
        return
    image = Image(source.name, source, row.get("patient", [source.name])[0])
    image.sex, image.age, image.view = (row.get(role, [""])[0] for role in ("sex", "age", "view"))
    image.split = read_split(row.get("split", [""])[0], file, where, problems)
    if "labels" in row:
        image.labels = _parse_cell(row["labels"][0], labels, file, where, problems)
    for finding, text in zip(columns.get("findings", ()), row.get("findings", ()), strict=True):
        label = parse_label(text)
        if label is None:
            fix = "write 1, 0, -1 for uncertain, or leave the cell blank for unknown"
            example = f"{where} {finding} {text[:40]!r}"
            problems.add(file, "has a label that is no number", fix, example)
        else:
            image.labels[finding] = label
    collection.add_image(image, file, where, problems)


def _parse_cell(
    cell: str, labels: Labels, file: str, where: str, problems: Problems
) -> dict[str, str]:
    """'Mass;Nodule' → {'Mass': '1', 'Nodule': '1'}."""
    for separator in labels.separators[1:]:
        cell = cell.replace(separator, labels.separators[0])
    names = [name.strip() for name in cell.split(labels.separators[0])] if cell else [""]
    findings = [name for name in names if name.casefold() not in labels.no_finding]
    if not cell and findings:
        what = "has a blank cell of labels, which may mean no finding or not known"
        fix = "write 'No Finding', or give --no_finding='No Finding,' if a blank cell means that"
        problems.add(file, what, fix, where)
    elif "" in findings:
        problems.add(file, "has a blank label beside another", "delete one separator", where)
    elif findings and len(findings) < len(names):
        fix = "keep one of the two"
        problems.add(file, "has a finding beside no finding", fix, f"{where} {cell[:80]!r}")
    elif len(set(findings)) < len(findings):
        problems.add(
            file, "names a finding twice in one cell", "keep one", f"{where} {cell[:80]!r}"
        )
    for finding in findings:
        if any(separator in finding for separator in SEPARATORS):
            what = "has a finding whose name holds a separator"
            fix = "give the letter that separates the findings by --label_separator"
            problems.add(file, what, fix, f"{where} {finding[:80]!r}")
    return dict.fromkeys(findings, POSITIVE)


def _read_boxes(
    box_table: BoxTable,
    folder: ImageFolder,
    separator: str,
    labels: Labels,
    collection: Collection,
    problems: Problems,
) -> list[RawBox]:
    sides = next(
        (names for names in _SIDES if all(name in box_table.columns for name in names)), None
    )
    if sides is None or len(set(box_table.columns) - {"image", "finding"}) != 4:
        raise UserError("--box_columns must name x=, y=, w= and h=, or x0=, y0=, x1= and y1=")
    if ("finding" in box_table.columns) == bool(box_table.finding):
        raise UserError(
            "give the finding of the boxes by finding= in --box_columns, or by --box_finding"
        )
    file, boxes = box_table.path.name, []
    for number, cells in _lines(box_table.path, box_table.columns, separator, problems):
        row = dict(zip(box_table.columns, cells, strict=True))
        finding, texts = row.get("finding", box_table.finding), [row[side] for side in sides]
        where = f"row {number} ({row['image'][:200]} {finding[:80]})"
        is_empty = not any(texts)
        if is_empty and ("finding" not in row or finding.casefold() in labels.no_finding):
            collection.drop("rows of the box file without a box", where)
            continue
        source = folder.find(row["image"], file, where, problems)
        corners = _parse_corners(texts, sides, file, where, problems)
        if source is None or corners is None:
            continue
        image = collection.images.get(source.name)
        if image is None or image.source != source:
            fix = "add a row for the image, or delete the box"
            problems.add(file, "has a box of an image without a row", fix, where)
        else:
            boxes.append(RawBox(image.name, finding, corners, where))
    return boxes


def _parse_corners(
    texts: Sequence[str], sides: Sequence[str], file: str, where: str, problems: Problems
) -> tuple[float, float, float, float] | None:
    a, b, c, d = (parse_number(text) for text in texts)
    where = f"{where} {', '.join(texts)}"[:300]
    if a is None or b is None or c is None or d is None:
        comma = "; a decimal has a point, not a comma" if any("," in text for text in texts) else ""
        fix = f"give {', '.join(sides)} as numbers{comma}"
        problems.add(file, "has a box whose sides are no numbers", fix, where)
        return None
    corners = (a, b, a + c, b + d) if "w" in sides else (a, b, c, d)
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        positive = "w and h" if "w" in sides else "x1 - x0 and y1 - y0"
        problems.add(file, "has a box without an area", f"give {positive} above 0", where)
        return None
    return corners


def _label_by_boxes(boxes: Sequence[RawBox], collection: Collection) -> None:
    collection.findings = tuple(sorted({box.finding for box in boxes}))
    for box in boxes:
        collection.images[box.image].labels[box.finding] = POSITIVE
    collection.notes.append(
        "The findings come from the boxes: an image has those of its boxes and no other."
    )


def _check_labels_of_boxes(
    boxes: Sequence[RawBox], collection: Collection, file: str, problems: Problems
) -> None:
    for box in boxes:
        if box.finding not in collection.findings:
            what = f"has a box whose finding {box.finding[:80]!r} is no label"
            problems.add(file, what, how_to_write(box.finding, collection.findings), box.where)
        elif collection.images[box.image].labels.get(box.finding, NEGATIVE) == NEGATIVE:
            fix = "add the finding to the image's labels, or delete the box"
            problems.add(
                file, "has a box of a finding that its image does not have", fix, box.where
            )
