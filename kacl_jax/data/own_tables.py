"""Parses the simple layout for own X-rays: images.csv and annotations.csv.

images.csv has the columns image, patient, and if known split, sex, age and view; every other column is a finding, with
1, 0, −1 (uncertain) or blank (unknown). annotations.csv has image, finding, x, y, w, h: a box per row, in pixels of the
image as it is seen, any number of boxes per image and finding.
"""

from __future__ import annotations

from kacl_jax.data import image_names, metadata
from kacl_jax.data.problems import Problems
from kacl_jax.data.tables import Row, Tables, parse_xywh, read_table, report_unlabelled
from kacl_jax.data.text_files import csv_header, csv_lines, find_plain_or_gz
from kacl_jax.images import file_names

LABEL_FILE, BOX_FILE = "images.csv", "annotations.csv"
TABLE_FILES = (LABEL_FILE, BOX_FILE)
_REQUIRED, _OPTIONAL = ("image", "patient"), ("split", "age", "sex", "view")
_SPLITS = ("", "train", "val", "test")
_LABELS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1, "": None}


def read_own_tables(tables: Tables, problems: Problems, uncertain: str) -> None:
    """Parses both files into `tables`.

    uncertain: what −1 becomes: 'ignore' (unknown), 'positive', 'negative'; with 'refuse' it is a Problem.
    """
    tables.label_file, tables.box_file, tables.own_frames = LABEL_FILE, BOX_FILE, True
    tables.findings = ()
    text = read_table(LABEL_FILE, tables, problems)
    if text is not None:
        _parse_images(text, uncertain, tables, problems)
    _report_misspelt_box_file(tables, problems)
    # Without a finding or a row every box would be wrong. A Problem says why there is none.
    if tables.findings and tables.labelled_images and find_plain_or_gz(tables.root, BOX_FILE):
        text = read_table(BOX_FILE, tables, problems)
        if text is not None:
            _parse_boxes(text, tables, problems)


def _report_misspelt_box_file(tables: Tables, problems: Problems) -> None:
    """The box file may be absent. Another name for it must not lose the boxes."""
    if find_plain_or_gz(tables.root, BOX_FILE) is not None:
        return
    for path in sorted(tables.root.iterdir()):
        if path.name.casefold().startswith(("annotation", "box", "bbox")):
            problems.add(path.name, f"is not read; boxes are in {BOX_FILE}", f"name it {BOX_FILE}")


def _parse_images(text: str, uncertain: str, tables: Tables, problems: Problems) -> None:
    header = csv_header(LABEL_FILE, text, problems)
    if header is None:
        return
    present = [name for name in (*_REQUIRED, *_OPTIONAL) if name in header or name in _REQUIRED]
    tables.findings = tuple(name for name in header if name and name not in present)
    for finding in tables.findings:
        if formula := file_names.objection(finding):
            problems.add(LABEL_FILE, f"has a finding that {formula}", "rename the column", finding)
    if not tables.findings:
        fix = "add one column per finding, with 1, 0, -1 or blank"
        problems.add(LABEL_FILE, "has no column of a finding", fix)
    columns = [(name,) for name in (*present, *tables.findings)]
    reader = metadata.Reader(("age", "sex", "view"))
    parts: dict[str, set[str]] = {split: set() for split in _SPLITS}
    for number, cells in csv_lines(LABEL_FILE, text, columns, problems):
        cell = dict(zip((*present, *tables.findings), cells, strict=True))
        image, split = cell["image"], cell.get("split", "").casefold()
        where = f"row {number} ({image})"
        name_objection = image_names.objection(image)
        if name_objection is not None:
            what, fix = name_objection
            problems.add(LABEL_FILE, f"image {what}", fix, where)
            continue
        if image in tables.labelled_images:
            problems.add(LABEL_FILE, "has an image twice", "keep one row per image", where)
            continue
        tables.labelled_images.add(image)
        objection = _objection(cell["patient"], split)
        if objection is not None:
            problems.add(LABEL_FILE, *objection, where)
            continue
        parts[split].add(image)
        values = _parse_labels(cell, where, uncertain, tables, problems)
        if values is not None:
            age, sex, view = reader.read(*(cell.get(name, "") for name in ("age", "sex", "view")))
            tables.rows[image] = Row(
                cell["patient"],
                frozenset(name for name, value in values.items() if value == 1),
                age,
                sex,
                view,
                frozenset(name for name, value in values.items() if value is None),
            )
    if not tables.labelled_images:
        problems.add(LABEL_FILE, "has no row that can be read", "write one row per image")
    reader.report(LABEL_FILE, problems)
    if any(parts[split] for split in _SPLITS if split):
        _check_splits(parts, problems)
        tables.lists = {"train": parts["train"] | parts["val"], "test": parts["test"]}


def _objection(patient: str, split: str) -> tuple[str, str] | None:
    """(what is wrong with the patient or the split of a row, the fix), or None."""
    if not patient:
        return "has no patient", "write a name or a number, the same for all images of a patient"
    if formula := file_names.objection(patient):
        return f"patient {formula}", "rename the patient"
    if split not in _SPLITS:
        return "has an unknown split", "write train, val or test, or leave the column out"
    return None


def _parse_labels(
    cell: dict[str, str], where: str, uncertain: str, tables: Tables, problems: Problems
) -> dict[str, int | None] | None:
    """Finding → 1, 0 or None (unknown); None for a row with a wrong label."""
    wrong = [name for name in tables.findings if cell[name] not in _LABELS]
    for name in wrong:
        fix = "write 1, 0, -1 (uncertain), or leave it blank (unknown); a column that is no finding must go"
        problems.add(
            LABEL_FILE, f"is no label in column {name!r}", fix, f"{where} {cell[name][:40]!r}"
        )
    if wrong:
        return None
    values = {name: _LABELS[cell[name]] for name in tables.findings}
    for name, value in values.items():
        if value != -1:
            continue
        if uncertain == "refuse":
            fix = "say what -1 means: --config.data.uncertain=ignore, positive or negative"
            problems.add(LABEL_FILE, f"has uncertain labels of {name!r}", fix, where)
        values[name] = {"positive": 1, "negative": 0}.get(uncertain)
    return values


def _check_splits(parts: dict[str, set[str]], problems: Problems) -> None:
    if parts[""]:
        fix = "write train, val or test in every row, or in none"
        problems.add(LABEL_FILE, "has rows without a split", fix, ", ".join(sorted(parts[""])[:3]))


def _parse_boxes(text: str, tables: Tables, problems: Problems) -> None:
    columns = [(name,) for name in ("image", "finding", "x", "y", "w", "h")]
    for number, (image, finding, *sides) in csv_lines(BOX_FILE, text, columns, problems):
        where = f"row {number} ({image} {finding})"
        xywh = parse_xywh(sides)
        if finding not in tables.findings:
            fix = f"write the name of a column of {LABEL_FILE}: {', '.join(tables.findings)}"
            problems.add(BOX_FILE, f"unknown finding {finding[:80]!r}", fix, where)
        elif image not in tables.labelled_images:
            report_unlabelled(BOX_FILE, image, where, tables, problems)
        elif xywh is None:
            fix = "give x, y, w, h as numbers with w and h above 0"
            problems.add(BOX_FILE, "is no box", fix, f"{where} {', '.join(sides)}"[:200])
        elif xywh in tables.boxes.get((image, finding), ()):
            problems.add(BOX_FILE, "has a box twice", "delete one of the rows", where)
        else:
            tables.boxes.setdefault((image, finding), []).append(xywh)
