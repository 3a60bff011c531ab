"""Parses NIH's four text files into Tables; every mistake in them becomes a Problem.

Training and --mode=verify both use this parser.
"""

from __future__ import annotations

from kacl_jax.data import image_names, metadata
from kacl_jax.data.findings import FINDINGS_14, NO_FINDING, finding_of, how_to_write
from kacl_jax.data.problems import Problems
from kacl_jax.data.tables import Row, Tables, parse_xywh, read_table, report_unlabelled
from kacl_jax.data.text_files import csv_lines, find_plain_or_gz, report_absent, text_lines

LABEL_FILES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
BOX_FILE = "BBox_List_2017.csv"
LIST_FILES = ("train_val_list.txt", "test_list.txt")
TABLE_FILES = (*LABEL_FILES, BOX_FILE, *LIST_FILES)


def read_nih_tables(tables: Tables, problems: Problems) -> None:
    """Parses the label file, the box file and both lists, and checks them against each other."""
    tables.label_file, tables.box_file, tables.list_names = LABEL_FILES[0], BOX_FILE, LIST_FILES
    _read_labels(tables, problems)
    box_text = read_table(BOX_FILE, tables, problems)
    if box_text is not None:
        _parse_boxes(box_text, tables, problems)
    for name in LIST_FILES:
        text = read_table(name, tables, problems)
        if text is not None:
            _parse_list(name, text, tables, problems)
    if tables.labelled_images and len(tables.lists) == len(LIST_FILES):
        _compare_lists(tables, problems)


def _read_labels(tables: Tables, problems: Problems) -> None:
    names = [name for name in LABEL_FILES if find_plain_or_gz(tables.root, name)]
    if len(names) == 2:
        fix = "keep the one you mean: their labels differ"
        problems.add(names[0], f"lies beside {names[1]}", fix)
    elif not names:
        report_absent(tables.root, LABEL_FILES, problems)
    else:
        tables.label_file = names[0]
        text = read_table(names[0], tables, problems)
        if text is not None:
            _parse_labels(names[0], text, tables, problems)


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
    reader = metadata.Reader(("Patient Age", "Patient Gender", "View Position"))
    for number, cells in csv_lines(name, text, _LABEL_COLUMNS, problems):
        image, labels, patient_text, *age_sex_view = cells
        where = f"row {number} ({image})"
        wrong = image_names.objection(image)
        if wrong is not None:
            problems.add(name, f"Image Index {wrong[0]}", wrong[1], where)
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
        patient = metadata.parse_patient(patient_text)
        if patient is None:
            fix = "give every patient a whole number below 2147483648"
            problems.add(name, "Patient ID is no number", fix, f"{where} {patient_text[:40]!r}")
            continue
        tables.rows[image] = Row(str(patient), findings_of[labels], *reader.read(*age_sex_view))
    reader.report(name, problems)


def _parse_finding_labels(
    labels: str, name: str, where: str, problems: Problems
) -> frozenset[str] | None:
    """'Mass|Nodule' → its findings; 'No Finding' → the empty set; None if the text is wrong."""
    names = [finding_of(label.strip()) for label in labels.split("|")]
    valid = (*FINDINGS_14, NO_FINDING)
    unknown = [label for label in names if label not in valid]
    for label in unknown:
        what = f"unknown label {label[:80]!r}" if label else "has a blank label"
        problems.add(name, what, how_to_write(label, valid), where)
    if NO_FINDING in names and len(names) > 1:
        fix = "keep one of the two"
        problems.add(name, f"{NO_FINDING!r} beside a finding", fix, f"{where} {labels!r}")
        return None
    return None if unknown else frozenset(names) - {NO_FINDING}


_BOX_COLUMNS = (("Image Index",), ("Finding Label",), ("Bbox [x",), ("y",), ("w",), ("h]",))


def _parse_boxes(text: str, tables: Tables, problems: Problems) -> None:
    for number, cells in csv_lines(BOX_FILE, text, _BOX_COLUMNS, problems):
        image, label, *sides = cells
        finding = finding_of(label)
        where = f"row {number} ({image} {label})"
        if finding not in FINDINGS_14:
            what = f"unknown finding {label[:80]!r}"
            problems.add(BOX_FILE, what, how_to_write(label, FINDINGS_14), where)
            continue
        if tables.labelled_images and image not in tables.labelled_images:
            report_unlabelled(BOX_FILE, image, where, tables, problems)
            continue
        if (image, finding) in tables.boxes:
            fix = "keep one box per image and finding"
            problems.add(BOX_FILE, "has a second box of one finding", fix, where)
            continue
        xywh = parse_xywh(sides)
        if xywh is None:
            fix = "give x, y, w, h as numbers with w and h above 0"
            problems.add(BOX_FILE, "is no box", fix, f"{where} {', '.join(sides)}"[:200])
            continue
        tables.boxes[image, finding] = [xywh]


def _parse_list(name: str, text: str, tables: Tables, problems: Problems) -> None:
    images: set[str] = set()
    for number, image in text_lines(text):
        where = f"line {number} ({image[:200]})"
        if image in images:
            problems.add(name, "names an image twice", "delete the second line", where)
        elif tables.labelled_images and image not in tables.labelled_images:
            meant = report_unlabelled(name, image, where, tables, problems)
            images.add(meant or image)
        images.add(image)
    tables.lists[name] = images


def _compare_lists(tables: Tables, problems: Problems) -> None:
    train_val, test = (tables.lists[name] for name in LIST_FILES)
    for image in sorted(train_val & test):
        fix = f"take it out of one of them: {LIST_FILES[0]} trains, {LIST_FILES[1]} scores"
        problems.add(LIST_FILES[1], f"names an image that {LIST_FILES[0]} names too", fix, image)
    for image in sorted(tables.labelled_images - train_val - test):
        fix = f"add the image to {LIST_FILES[0]} or {LIST_FILES[1]}"
        problems.add(tables.label_file, "has an image that neither list names", fix, image)
