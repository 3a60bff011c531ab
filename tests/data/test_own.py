"""The simple layout for own X-rays, from its two tables to a split and batches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dicom_file import write_dicom

from kacl_jax import config as config_keys
from kacl_jax.data.batches import ShardBatches
from kacl_jax.data.records import Records, read_records
from kacl_jax.data.splits import make_split
from kacl_jax.data.verify import check
from kacl_jax.images.resizing import resize
from kacl_jax.prepare import prepare_root
from kacl_jax.runtime.errors import UserError
from kacl_jax.train.experiment import check_mean_maps

HEADER = "image,patient,sex,age,view,Opacity,Rib fracture\n"
ROWS = [
    "a.jpg,P-1,F,61,PA,1,0",
    "b.png,P-1,,,,1,",
    "c.png,Müller,male,58 years,ap,0,-1",
    "d.png,7,M,,AP,0,1",
]
BOXES = [
    "a.jpg,Opacity,10,20,30,40",
    "a.jpg,Opacity,50.5,60,20,10",
    "b.png,Opacity,0,0,100,80",
    "d.png,Rib fracture,5,5,10,10",
]


def write(
    root: Path, rows: list[str] = ROWS, boxes: list[str] = BOXES, header: str = HEADER
) -> Path:
    """Files of 100×80 px, so that a wrong frame gives other boxes."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "images.csv").write_text(header + "".join(f"{row}\n" for row in rows))
    (root / "annotations.csv").write_text(
        "image,finding,x,y,w,h\n" + "".join(f"{row}\n" for row in boxes)
    )
    pixels = np.tile(np.linspace(0, 255, 100).astype(np.uint8), (80, 1))
    for row in rows:
        cv2.imwrite(str(root / "images" / row.split(",")[0]), pixels)
    return root


def read(root: Path, **options: Any) -> Records:
    return read_records(root, **{"findings": "all", "uncertain": "ignore"} | options)


def test_the_records_say_what_the_tables_say(tmp_path: Path) -> None:
    records = read(write(tmp_path))
    assert records.findings == ("Opacity", "Rib fracture")
    assert records.names.tolist() == ["a.jpg", "b.png", "c.png", "d.png"]
    assert records.labels.tolist() == [[1, 0], [1, -1], [0, -1], [0, 1]]
    assert records.patient_names.tolist() == ["P-1", "P-1", "Müller", "7"]
    assert records.patients[0] == records.patients[1]
    assert len(set(records.patients.tolist())) == 3
    assert (records.sex.tolist(), records.view.tolist()) == (
        ["F", "", "M", "M"],
        ["PA", "", "AP", "AP"],
    )
    assert records.age.tolist() == [61, -1, 58, -1]
    assert records.boxes.shape == (4, 2, 2, 4)
    # In fractions of 100 × 80 px.
    expected = [[0.1, 0.25, 0.4, 0.75], [0.505, 0.75, 0.705, 0.875]]
    np.testing.assert_allclose(records.boxes[0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(records.boxes[1, 0], [[0, 0, 1, 1], [0, 0, 0, 0]], rtol=1e-6)
    assert records.has_box.tolist() == [[True, False], [True, False], [False, False], [False, True]]
    assert records.official_test is None


@pytest.mark.parametrize(("rule", "label"), [("ignore", -1), ("positive", 1), ("negative", 0)])
def test_the_rule_for_uncertain_labels(tmp_path: Path, rule: str, label: int) -> None:
    assert read(write(tmp_path), uncertain=rule).labels[2].tolist() == [0, label]


def test_uncertain_labels_without_a_rule_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"uncertain labels of 'Rib fracture': row 4 \(c.png\).*data.uncertain="
    ):
        read(write(tmp_path), uncertain="refuse")


def test_findings_are_chosen_by_name(tmp_path: Path) -> None:
    root = write(tmp_path)
    chosen = read(root, findings="Rib fracture")
    assert chosen.findings == ("Rib fracture",)
    assert chosen.labels[:, 0].tolist() == [0, -1, -1, 1]
    assert chosen.has_box[:, 0].tolist() == [False, False, False, True]
    for wrong in ("Mass", "Opacity,Opacity", 8):
        with pytest.raises(UserError, match="which has Opacity, Rib fracture"):
            read(root, findings=wrong)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rows": [*ROWS, "a.jpg,P-1,F,61,PA,1,0"]}, "images.csv: has an image twice: row 6 (a.jpg)"),
        ({"rows": [*ROWS[1:], "a.jpg,P-1,F,61,PA,yes,0"]}, "is no label in column 'Opacity': row 5 (a.jpg) 'yes'"),
        ({"rows": ["a.jpg,,F,61,PA,1,0", *ROWS[1:]]}, "has no patient: row 2 (a.jpg)"),
        ({"rows": ["a.jpg,=1,F,61,PA,1,0", *ROWS[1:]]}, "patient begins with '='"),
        ({"header": HEADER.replace("Opacity", "@Opacity"), "boxes": []}, "has a finding that begins with '@'"),
        ({"rows": [], "boxes": []}, "images.csv: has no row that can be read"),
        ({"boxes": ["a.jpg,Mass,1,1,9,9"]}, "unknown finding 'Mass': row 2 (a.jpg Mass)"),
        ({"boxes": ["a.png,Opacity,1,1,9,9"]}, "writes an image name with another ending"),
        ({"boxes": ["a.jpg,Opacity,90,1,20,9"]}, "a box leaves its image: a.jpg Opacity (90, 1, 20, 9) in 100 x 80 px"),
        ({"boxes": ["a.jpg,Opacity,0.1,0.1,0.5,0.5"]}, "a box has a side under 1 px"),
        ({"boxes": ["a.jpg,Opacity,1,1,9,"]}, "is no box: row 2 (a.jpg Opacity)"),
        ({"boxes": [*BOXES, BOXES[0]]}, "has a box twice: row 6 (a.jpg Opacity)"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_for_verify_and_for_training(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    root = write(tmp_path, **change)
    with pytest.raises(UserError) as caught:
        read(root)
    assert expected in str(caught.value)
    found = check(root, findings="all", uncertain="ignore").problems
    assert expected in "\n".join(map(str, found))


@pytest.mark.parametrize("name", ["Annotations.csv", "boxes.csv"])
def test_boxes_under_another_name_are_not_lost_in_silence(tmp_path: Path, name: str) -> None:
    root = write(tmp_path)
    (root / "annotations.csv").rename(root / name)
    with pytest.raises(UserError, match=rf"{name}: is not read; boxes are in annotations\.csv"):
        read(root)


def test_a_fold_follows_from_the_names_of_the_patients(tmp_path: Path) -> None:
    """Not from their numbers, which depend on who else is in the root."""
    rows = [f"{i:02d}.png,P{i:02d},F,50,PA,{i % 2},0" for i in range(20)]
    boxes = [f"{i:02d}.png,Opacity,40,40,20,20" for i in range(1, 20, 2)]
    options = {
        "protocol": "C", "folds": 2, "fold": 0, "val_fraction": 0.2, "box_share": 1.0, "split_seed": 0, "version": 2,
    }  # fmt: skip
    records = read(write(tmp_path / "all", rows, boxes))
    split = make_split(records, **options)
    renamed = read(
        write(tmp_path / "renamed", [row.replace(".png,P", ".png,Q") for row in rows], boxes)
    )
    assert make_split(renamed, **options).test.tolist() != split.test.tolist()
    batch = next(ShardBatches(records, split, image_size=16, batch_size=4, seed=0))
    assert batch["boxes"].shape == (4, 2, 1, 4)
    for protocol in "AB":
        with pytest.raises(UserError, match=r"add a column split to images\.csv"):
            make_split(records, **options | {"protocol": protocol})


def test_a_split_column_gives_the_official_parts(tmp_path: Path) -> None:
    header = HEADER.replace("patient,", "patient,split,")
    rows = []
    for row, part in zip(ROWS, ("train", "val", "test", "test"), strict=True):
        image, patient, rest = row.split(",", 2)
        rows.append(f"{image},{patient},{part},{rest}")
    records = read(write(tmp_path, rows, header=header))
    assert records.official_test is not None
    assert records.official_test.tolist() == [False, False, True, True]


def test_a_blank_split_column_gives_no_parts(tmp_path: Path) -> None:
    header = HEADER.replace("patient,", "patient,split,")
    rows = [",".join([*row.split(",", 2)[:2], "", row.split(",", 2)[2]]) for row in ROWS]
    assert read(write(tmp_path, rows, header=header)).official_test is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Rib", "Rib \udcfc", "images.csv: is not UTF-8 text"),
        ("image,", '"image,', "images.csv: has a quotation mark that its line does not close"),
        ("patient", "person", "has no column: 'patient'. Fix: write this name into the header"),
        ("Opacity,", "Opacity,Opacity,", "images.csv: has a column twice: Opacity and Opacity"),
        ("M,,AP,0", "M,born 1950,AP,0", "2 of 3 cells of 'age' have no known meaning: "),
        ("b.png,P-1", "b.png,", "has no patient: row 3 (b.png)"),
    ],
)
def test_only_the_mistake_in_the_labels_is_listed(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    """Not what follows from it for the boxes, nor that NIH's findings are other ones."""
    root = write(tmp_path)
    text = (root / "images.csv").read_text()
    assert old in text
    text = text.replace(old, new, 1).replace("58 years", "?")
    (root / "images.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        read(root, findings="Opacity")
    assert expected in str(caught.value)
    assert not re.search("Cardiomegaly|NIH|no label row|does not fit", str(caught.value))
    found = check(root, findings="Opacity", uncertain="ignore").problems
    assert expected in "\n".join(map(str, found))


def test_a_prepared_set_of_own_x_rays_is_the_same_data(tmp_path: Path) -> None:
    root = write(tmp_path / "root")
    prepare_root(root=root, out=tmp_path / "prepared", size=16, workers=1)
    one, other = read(root), read(tmp_path / "prepared")
    for name in ("names", "labels", "boxes", "patients"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.images.read(0, 16), other.images.read(0, 16))
    report = check(tmp_path / "prepared", findings="all", uncertain="ignore")
    assert not report.problems
    assert report.summary["boxes"] == {"Opacity": 3, "Rib fracture": 1}


def test_a_dicom_is_an_image_like_others(tmp_path: Path) -> None:
    """Its picture is the one its window gives; verify, training and a prepared set see the same."""
    root = write(tmp_path / "root")
    for table in ("images.csv", "annotations.csv"):
        text = (root / table).read_text()
        (root / table).write_text(text.replace("d.png", "d.dcm"))
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100), np.uint8)
    write_dicom(root / "images" / "d.dcm", pixels)
    assert not check(root, findings="all", uncertain="ignore").problems
    prepare_root(root=root, out=tmp_path / "prepared", size=16, workers=1)
    for records in (read(root), read(tmp_path / "prepared")):
        np.testing.assert_array_equal(records.images.read(3, 16), resize(pixels, 16))
        np.testing.assert_allclose(records.boxes[3, 1, 0], [0.05, 0.0625, 0.15, 0.1875], rtol=1e-6)


def test_a_mean_map_needs_an_image_of_each_finding() -> None:
    config = config_keys.default()
    config.cam.stage, config.train.batch_size = 3, 12
    check_mean_maps(config, 12)
    with pytest.raises(UserError, match="it must be at least 14, one image"):
        check_mean_maps(config, 14)
