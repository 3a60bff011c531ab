"""The four text files: what people write is read rightly or refused with the right fix, never misread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_root import SmallRoot, small_root

from kacl_jax.data.findings import FINDINGS_14, NO_FINDING, how_to_write
from kacl_jax.data.records import Records, read_records
from kacl_jax.data.verify import check
from kacl_jax.runtime.errors import UserError

LABELS, BOXES = "Data_Entry_2017.csv", "BBox_List_2017.csv"
FIRST = "00000001_000.png"  # row 2 of the labels
Edit = Callable[[str], str]


def edited(tmp_path: Path, file: str, edit: Edit, text: SmallRoot | None = None) -> Path:
    root = (text or small_root()).write(tmp_path / "root")
    before = (root / file).read_text()
    after = edit(before)
    assert after != before
    (root / file).write_bytes(after.encode())
    return root


def refusal(root: Path) -> str:
    """What a run is told; verify tells it too."""
    with pytest.raises(UserError) as caught:
        read_records(root)
    told = str(caught.value)
    lines = set(map(str, check(root).problems))
    assert set(told.splitlines()[1:]) <= lines
    return told


def assert_same(records: Records, expected: Records) -> None:
    for name in ("names", "patients", "labels", "boxes", "has_box", "official_test", "age", "sex"):
        np.testing.assert_array_equal(getattr(records, name), getattr(expected, name), name)
    np.testing.assert_array_equal(records.view, expected.view)


def replace(old: str, new: str, count: int = 1) -> Edit:
    return lambda text: text.replace(old, new, count)


def replace_last(old: str, new: str) -> Edit:
    return lambda text: new.join(text.rsplit(old, 1))


# ---- strict rows


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        # One stray quotation mark used to swallow all later rows.
        (BOXES, replace("00000007_000", '"00000007_000'), "does not close: row 2."),
        (LABELS, replace(f"{FIRST},Nodule", f'{FIRST},"Nodule'), "does not close: row 2."),
        (LABELS, replace(",Nodule,0,1,41", ',"Nod\nule",0,1,41'), "does not close: row 2."),
        (BOXES, lambda text: text[: text.rindex("64.0") + 1], "may be cut off: line 7"),
        (BOXES, replace_last(",64.0,,,", ",64.0"), "too few cells: row 7"),
        (BOXES, replace_last(",64.0,,,", ",64,0,,,"), "too many cells: row 7"),
        (LABELS, replace(",Follow-up #", ",Patient ID"), "has a column twice: Patient ID and"),
        (LABELS, replace(",0,1,41", f",0,{'9' * 5000},41"), "Patient ID is no number: row 2"),
        (LABELS, replace(",0,1,41", ",0,1_0,41"), "Patient ID is no number: row 2"),
        (LABELS, replace(",0,1,41", ",0,١,41"), "Patient ID is no number: row 2"),
        (BOXES, replace(",256.0,", ",2_56,"), "is no box: row 2"),
        (BOXES, replace(",256.0,", ",١٢,"), "is no box: row 2"),
        (LABELS, replace("Nodule", "Nod\0ule"), "has a zero byte, which no text has: line 2"),
    ],
)
def test_a_file_that_is_not_what_it_seems_is_refused(
    tmp_path: Path, file: str, edit: Edit, expected: str
) -> None:
    told = refusal(edited(tmp_path, file, edit))
    assert f"{file}: " in told
    assert expected in told, told


def test_a_file_in_another_encoding_is_refused_with_the_line(tmp_path: Path) -> None:
    root = small_root().write(tmp_path)
    text = (root / LABELS).read_text().replace("Nodule,0,1,", "Nödule,0,1,", 1)
    (root / LABELS).write_bytes(text.encode("latin-1"))
    assert f"{LABELS}: is not UTF-8 text: line 2. Fix: save the file as UTF-8." in refusal(root)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",M,", ',"M",'),
        lambda text: text.replace("\n", ",,,\n").replace(",,,\n", "\n", 1),
        lambda text: text.replace("\n", "\n\n").replace(",M,", " , M ,"),
        lambda text: text.replace(",M,", ",Male,", 3).replace(",M,", ",m,", 3),
        lambda text: text.replace(",PA,", ",pa,", 3).replace(",AP,", ",AP Supine,", 3),
        lambda text: text.replace(",41,", ",041Y,").replace(",42,", ",42.0,"),
        lambda text: text.replace(",43,", ",43 years,"),
    ],
)
def test_what_means_the_same_is_read_the_same(tmp_path: Path, edit: Edit) -> None:
    expected = read_records(small_root().write(tmp_path / "plain"))
    root = edited(tmp_path, LABELS, edit)
    assert_same(read_records(root), expected)
    assert not check(root).problems


@pytest.mark.parametrize(
    ("old", "new", "column"),
    [
        (",M,", ",1,", "Patient Gender"),
        (",PA,", ",frontal,", "View Position"),
        (",4", ",19", "Patient Age"),  # years of birth
    ],
)
def test_a_column_without_a_meaning_is_refused(
    tmp_path: Path, old: str, new: str, column: str
) -> None:
    def edit(text: str) -> str:
        header, *rows = text.splitlines(keepends=True)
        return header + "".join(row.replace(old, new).replace(",AP,", ",lat,") for row in rows)

    told = refusal(edited(tmp_path, LABELS, edit))
    assert f"cells of {column!r} have no known meaning" in told


def test_a_few_cells_without_a_meaning_are_counted_only(tmp_path: Path) -> None:
    root = edited(tmp_path, LABELS, replace(",M,", ",?,", 11))
    assert check(root).summary["sexes"] == {"?": 11, "M": 13}
    assert not check(root).problems


# ---- names


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "@a.png", "\x1b[2J.png"])
def test_a_name_that_would_run_in_a_spreadsheet_is_refused(tmp_path: Path, name: str) -> None:
    text = small_root()
    for lines in (text.labels, text.train_val, text.names):
        lines[0] = lines[0].replace(FIRST, name)
    told = refusal(text.write(tmp_path))
    assert "Fix: rename the file, and its rows in all tables." in told


@pytest.mark.parametrize(
    ("label", "fix"),
    [
        ("Cardiomegaly;Effusion", "separate findings by '|': 'Cardiomegaly|Effusion'"),
        ("Mass, nodule", "separate findings by '|': 'Mass|Nodule'"),
        ("no finding", "write 'No Finding'"),
        ("pleural thickening", "write 'Pleural_Thickening'"),
        ("Nodules", "write 'Nodule'"),
        ("Noddule", "write 'Nodule'"),
        ("Cardiomeagly", "write 'Cardiomegaly'"),
    ],
)
def test_a_label_is_corrected_only_where_its_meaning_is_certain(label: str, fix: str) -> None:
    assert how_to_write(label, (*FINDINGS_14, NO_FINDING)) == fix


@pytest.mark.parametrize(
    "label",
    ["No Pneumonia", "Calcification", "not Mass", "Mass free", "Normal", "No Mass;Effusion"],
)
def test_no_label_is_turned_into_another_finding(label: str) -> None:
    assert how_to_write(label, (*FINDINGS_14, NO_FINDING)).startswith("use only Atelectasis,")


def test_a_list_of_paths_keeps_its_lines(tmp_path: Path) -> None:
    def edit(text: str) -> str:
        return "".join(f"images/{name}\n" for name in text.split())

    told = refusal(edited(tmp_path, "train_val_list.txt", edit))
    assert "writes an image name with a folder: line 1 (images/00000001_000.png): 0000" in told
    assert f"Fix: write each name as {LABELS} does." in told
    assert "delete" not in told
    assert "neither list" not in told


@pytest.mark.parametrize(
    ("rename", "how"),
    [
        (lambda name: name.replace(".png", ".jpg"), "with another ending"),
        (lambda name: name.replace(".png", ".PNG"), "in other upper and lower case"),
    ],
)
def test_files_under_another_spelling_are_not_called_missing(
    tmp_path: Path, rename: Edit, how: str
) -> None:
    """Neither is training on what is there proposed; with allow_missing it stays an error."""
    root = small_root().write(tmp_path)
    for path in list((root / "images").iterdir()):
        path.rename(path.with_name(rename(path.name)))
    told = refusal(root)
    assert (
        f"the tables write the name of a file {how}: {FIRST}: the file is {rename(FIRST)}" in told
    )
    assert "allow_missing" not in told
    with pytest.raises(UserError, match="the tables write the name of a file"):
        read_records(root, allow_missing=True)


def test_the_unicode_form_of_a_name_is_named(tmp_path: Path) -> None:
    text = small_root()
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    for lines in (text.labels, text.train_val):
        lines[0] = lines[0].replace(FIRST, composed)
    text.names[0] = decomposed
    told = refusal(text.write(tmp_path))
    assert "in another Unicode form (NFC or NFD)" in told


def test_own_data_are_told_what_to_write(tmp_path: Path) -> None:
    root = small_root().write(tmp_path)
    (root / LABELS).unlink()
    assert "for your own X-rays write it (docs/data.md shows how)" in refusal(root)
