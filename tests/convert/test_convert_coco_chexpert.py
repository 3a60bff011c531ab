"""COCO and CheXpert → the simple layout, with the truth known, and each mistake once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_sources import HEIGHT, WIDTH, convert, refusal, rows_of, write_image, write_table

# ---- COCO

Edit = Callable[[dict[str, Any]], Any]


def write_coco(tmp_path: Path, edit: Edit = lambda content: None) -> list[object]:
    """Four images of three patients, two findings and a category for none; a crowd and a segmentation."""
    for k in range(4):
        write_image(tmp_path / "img" / "deep" / f"{k}.png")
    annotations: list[dict[str, Any]] = [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [10, 20, 30.5, 40]},
        {"id": 2, "image_id": 10, "category_id": 7, "bbox": [100, 20, 30, 40], "iscrowd": 0},
        {"id": 3, "image_id": 11, "category_id": 2, "bbox": [0, 0, 200, 120], "iscrowd": 1},
        {"id": 4, "image_id": 12, "category_id": 2, "segmentation": [[1, 1, 5, 5, 1, 5]]},
        {"id": 5, "image_id": 13, "category_id": 3, "bbox": [0, 0, 1, 1]},
    ]
    content = {
        "images": [
            {"id": 10 + k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT, "patient_id": max(k, 1)}
            for k in range(4)
        ],
        "categories": [{"id": k, "name": n} for k, n in ((7, "Mass"), (2, "Nodule"), (3, "No finding"))],
        "annotations": annotations,
    }  # fmt: skip
    edit(content)
    (tmp_path / "c.json").write_text(json.dumps(content))
    paths = (f"--in={tmp_path / 'c.json'}", f"--images={tmp_path / 'img'}")
    return ["--from=coco", *paths, f"--out={tmp_path / 'out'}"]


def test_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(*write_coco(tmp_path)) == 0
    assert (tmp_path / "out" / "images.csv").read_text() == (
        "image,patient,Mass,Nodule\n0.png,1,1,0\n1.png,1,0,1\n2.png,2,0,1\n3.png,3,0,0\n"
    )
    assert (tmp_path / "out" / "annotations.csv").read_text() == (
        "image,finding,x,y,w,h\n0.png,Mass,10,20,30.5,40\n0.png,Mass,100,20,30,40\n"
    )
    printed = capsys.readouterr().out
    assert (
        "Left out: boxes of crowds (their images keep the finding): 1 (annotations[2] (id 3)"
        in printed
    )
    assert "Left out: annotations without a box" in printed
    assert "Left out: annotations of a category that is no finding: 1 (annotations[4]" in printed


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda c: c.pop("images"), "has no list 'images' of objects"),
        (lambda c: c["images"][0].pop("patient_id"), "has an image without a patient: images[0]"),
        (lambda c: c["images"][0].update(file_name="q.png"), "does not exist: images[0] (id 10) q.png"),
        (lambda c: c["images"][0].update(file_name=4), "has an image without a file_name"),
        (lambda c: c["images"][1].update(id=10), "has an id twice in its list images: images[1]"),
        (lambda c: c["images"][0].update(width=400), "another width and height than its file has"),
        (lambda c: c["annotations"][0].update(image_id=99), "has an annotation of no image"),
        (lambda c: c["annotations"][0].update(category_id=99), "has an annotation of no category"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "has a box whose sides are no numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "whose sides are no numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 10**400, 4]), "whose sides are no numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 4]), "has a box without an area"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 300, 4]), "1 of 2 boxes lie partly outside"),
        (lambda c: c["categories"][1].update(name="Mass"), "has two categories of one name: 'Mass'"),
        (lambda c: c["categories"][1].update(name="\ud800"), "half a letter"),
        (lambda c: c["categories"][0].update(name=[]), "has a category without a name: categories[0] (id 7)"),
        (lambda c: c["categories"][1].update(name="a\nb"), "holds a control character"),
    ],
)  # fmt: skip
def test_a_mistake_in_coco_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Edit, message: str
) -> None:
    assert message in refusal(write_coco(tmp_path, edit), capsys, tmp_path / "out")


# ---- CheXpert

CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Support Devices"
TRAIN = (
    "CheX/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,1.0",
    "CheX/train/patient00001/study2/view1_frontal.jpg,Female,69,Frontal,PA,,-1.0,0.0",
    "CheX/train/patient00001/study2/view2_lateral.jpg,Female,69,Lateral,,,-1.0,0.0",
)
VALID = ("CheX/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,0.0",)


def write_chexpert(tmp_path: Path, *more: str) -> list[object]:
    for row in (*TRAIN, *VALID):
        write_image(tmp_path / row.split(",")[0])
    paths = {"train": (*TRAIN, *more), "valid": VALID}
    flags = [
        f"--in={write_table(tmp_path / 'CheX' / f'{name}.csv', CHEXPERT, *rows)}"
        for name, rows in paths.items()
    ]
    return ["--from=chexpert", *flags, f"--out={tmp_path / 'out'}"]


def test_chexpert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_chexpert(tmp_path)
    assert convert(*arguments) == 0
    assert (tmp_path / "out" / "images.csv").read_text() == (
        "image,patient,split,sex,age,view,Edema,Support Devices\n"
        "patient00001_study1_view1_frontal.jpg,patient00001,train,F,68,AP,,1\n"
        "patient00001_study2_view1_frontal.jpg,patient00001,train,F,69,PA,-1,0\n"
        "patient64541_study1_view1_frontal.jpg,patient64541,test,M,73,AP,1,0\n"
    )
    printed = capsys.readouterr().out
    assert "Left out: lateral images (--any_view keeps them): 1 (train.csv row 4" in printed
    assert "train.csv: the column 'No Finding' is no finding" in printed
    assert ["Edema", "1", "0", "1", "1", "0"] in [line.split() for line in printed.splitlines()]
    shutil.rmtree(tmp_path / "out")
    assert convert(*arguments, "--any_view") == 0
    rows = rows_of(tmp_path / "out" / "images.csv")
    assert [row["view"] for row in rows] == ["AP", "PA", "Lateral", "AP"]
    for row in rows:
        assert (tmp_path / "out" / "images" / row["image"]).stat().st_size > 0


@pytest.mark.parametrize(
    "row, message",
    [
        (TRAIN[0], "has an image twice: row 5"),
        (TRAIN[0].replace("study1", "study9"), "names an image that does not exist: row 5"),
        (TRAIN[0].replace("patient0", "p"), "does not name the patient and the study"),
        (TRAIN[0].replace("Frontal", "front"), "has a row without a view"),
        (TRAIN[0][:-3] + "2.0", "has a label that is no number"),
        (VALID[0], "names two files of one name"),
    ],
)
def test_a_mistake_in_chexpert_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, message: str
) -> None:
    arguments = write_chexpert(tmp_path, row)
    if message.startswith("names two"):
        arguments = write_chexpert(tmp_path, row.replace("valid", "train"))
        write_image(tmp_path / row.split(",")[0].replace("valid", "train"))
    assert message in refusal(arguments, capsys, tmp_path / "out")
