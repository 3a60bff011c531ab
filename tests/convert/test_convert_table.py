"""A table of images and a table of boxes → the simple layout, with the truth known."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_sources import HEIGHT, WIDTH, convert, rows_of, write_image, write_table
from PIL import Image

from kacl_jax.data.records import read_records
from kacl_jax.images.reader import read_picture, read_size

FINDINGS = ("Bronchiectasis", "Cavity", "Mass")


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """40 JPEGs in two folders, a table with a BOM and semicolons, and boxes by their corners.

    Every third image has no finding; image 0 has two boxes of one finding.
    """
    for k in range(40):
        write_image(tmp_path / "scans" / f"ward{k % 2}" / f"x{k:02d}.jpg")
    rows = ["File;MRN;Dx;Sex;Age;Set"]
    rows += [
        f"x{k:02d}.jpg;P-{k // 2:03d}/b;{labels(k)};{'FM'[k % 2]};{40 + k};{'train' if k < 30 else 'test'}"
        for k in range(40)
    ]
    (tmp_path / "table.csv").write_bytes(("\ufeff" + "\r\n".join(rows) + "\r\n").encode())
    write_table(
        tmp_path / "boxes.csv",
        "File;Dx;x1;y1;x2;y2",
        "x00.jpg;Cavity;10;20;110.5;60",
        "x00.jpg;Cavity;120;20;200;120",
        "x01.jpg;Mass;0.25;0;50;50",
    )
    return tmp_path


def labels(k: int) -> str:
    names = {0: "Cavity|Bronchiectasis", 1: "Mass", 2: "normal"}
    return names[k % 3]


def clinic_arguments(clinic: Path, *more: object) -> list[object]:
    return [
        "--from=table",
        f"--in={clinic / 'table.csv'}",
        f"--images={clinic / 'scans'}",
        "--separator=;",
        "--columns=image=File,labels=Dx,patient=MRN,sex=Sex,age=Age,split=Set",
        f"--boxes={clinic / 'boxes.csv'}",
        "--box_columns=image=File,finding=Dx,x0=x1,y0=y1,x1=x2,y1=y2",
        f"--out={clinic / 'out'}",
        *more,
    ]


def test_a_table_with_labels_in_one_cell_and_corner_boxes(
    clinic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(*clinic_arguments(clinic)) == 0
    out = clinic / "out"
    images = rows_of(out / "images.csv")
    assert list(images[0]) == ["image", "patient", "split", "sex", "age", *FINDINGS]
    assert len(images) == 40
    for k, row in enumerate(images):
        assert row["image"] == f"x{k:02d}.jpg"
        assert row["patient"] == f"P-{k // 2:03d}/b"
        assert (row["sex"], row["age"]) == ("FM"[k % 2], str(40 + k))
        assert row["split"] == ("train" if k < 30 else "test")
        assert [row[name] for name in FINDINGS] == [
            str(int(name in labels(k))) for name in FINDINGS
        ]
        file = out / "images" / row["image"]
        assert file.is_symlink()
        source = clinic / "scans" / f"ward{k % 2}" / row["image"]
        assert file.read_bytes() == source.read_bytes()
    assert [tuple(row.values()) for row in rows_of(out / "annotations.csv")] == [
        ("x00.jpg", "Cavity", "10", "20", "100.5", "40"),
        ("x00.jpg", "Cavity", "120", "20", "80", "100"),
        ("x01.jpg", "Mass", "0.25", "0", "49.75", "50"),
    ]
    printed = capsys.readouterr().out
    assert "40 images of 20 patients, 3 findings, 3 boxes" in printed
    assert ["Cavity", "14", "26", "0", "0", "2"] in [line.split() for line in printed.splitlines()]
    assert f"--config.data.root={out} --mode=verify" in printed
    assert sorted(path.name for path in clinic.iterdir()) == [
        "boxes.csv",
        "out",
        "scans",
        "table.csv",
    ]


def test_copies_outlive_their_sources(clinic: Path) -> None:
    before = (clinic / "scans" / "ward1" / "x01.jpg").read_bytes()
    assert convert(*clinic_arguments(clinic, "--copy")) == 0
    shutil.rmtree(clinic / "scans")
    assert not (clinic / "out" / "images" / "x01.jpg").is_symlink()
    assert (clinic / "out" / "images" / "x01.jpg").read_bytes() == before


def test_a_packed_table_with_a_column_per_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image column holds paths, and a name without its ending; no column says who the patient is."""
    write_image(tmp_path / "a" / "one.png")
    write_image(tmp_path / "two.png")
    text = "img\tMass\tNodule\na/one.png\t1.0\t\ntwo\t-1\t0\n"
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    arguments = ("--from=table", f"--in={tmp_path / 't.csv.gz'}", "--separator=tab")
    columns = "--columns=image=img,findings=Mass,Nodule"
    assert convert(*arguments, columns, f"--out={tmp_path / 'out'}") == 0
    assert (tmp_path / "out" / "images.csv").read_text() == (
        "image,patient,Mass,Nodule\none.png,one.png,1,\ntwo.png,two.png,-1,0\n"
    )
    assert not (tmp_path / "out" / "annotations.csv").exists()
    printed = capsys.readouterr().out
    assert "each image is a patient of its own" in printed
    counts = [line.split() for line in printed.splitlines()]
    assert ["Mass", "1", "0", "0", "1", "0"] in counts
    assert ["Nodule", "0", "1", "1", "0", "0"] in counts


@pytest.mark.parametrize(
    "unit, row",
    [
        ("pixels", "20,12,100,60"),
        ("fractions", "0.1,0.1,0.5,0.5"),
        ("nih", "102.4,102.4,512,512"),
    ],
)
def test_each_unit_gives_the_same_box(tmp_path: Path, unit: str, row: str) -> None:
    """And without a column for labels, the findings come from the boxes."""
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    table = write_table(tmp_path / "t.csv", "image,who", "a.png,1", "b.png,2")
    boxes = write_table(tmp_path / "b.csv", "image,x,y,w,h", f"a.png,{row}", "b.png,,,,")
    arguments = ("--from=table", f"--in={table}", "--columns=image=image,patient=who")
    more = (f"--boxes={boxes}", f"--box_unit={unit}", "--box_finding=Opacity")
    assert convert(*arguments, *more, f"--out={tmp_path / 'out'}") == 0
    written = (tmp_path / "out" / "annotations.csv").read_text()
    assert written == "image,finding,x,y,w,h\na.png,Opacity,20,12,100,60\n"
    assert [row["Opacity"] for row in rows_of(tmp_path / "out" / "images.csv")] == ["1", "0"]


def test_a_box_never_ends_beyond_its_image(tmp_path: Path) -> None:
    """Where a program has rounded it, or where x + w is rounded up in float64."""
    write_image(tmp_path / "a.png", (1023, 997))
    table = write_table(tmp_path / "t.csv", "image,Mass", "a.png,1")
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 900, (300, 2))
    ends = np.array([1023, 997]) + rng.choice([0, 0.3], (300, 2))
    lines = [
        f"a.png,Mass,{x!r},{y!r},{u!r},{v!r}"
        for (x, y), (u, v) in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    boxes = write_table(tmp_path / "b.csv", "image,finding,x0,y0,x1,y1", *lines)
    arguments = ("--from=table", f"--in={table}", "--columns=image=image,findings=Mass")
    columns = "--box_columns=image=image,finding=finding,x0=x0,y0=y0,x1=x1,y1=y1"
    assert convert(*arguments, f"--boxes={boxes}", columns, f"--out={tmp_path / 'out'}") == 0
    found = rows_of(tmp_path / "out" / "annotations.csv")
    x, y, w, h = (np.array([float(row[key]) for row in found]) for key in "xywh")
    assert (x + w <= 1023).all()
    assert (y + h <= 997).all()
    np.testing.assert_allclose(np.stack([x + w, y + h], 1), [[1023, 997]] * 300, atol=2e-4)
    np.testing.assert_allclose(np.stack([x, y], 1), starts, atol=1e-4)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_size_is_that_of_the_picture_as_it_is_seen(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    write_image(tmp_path / f"a.{ending}", exif=exif)
    height, width = read_picture(tmp_path / f"a.{ending}").values.shape
    assert read_size(tmp_path / f"a.{ending}") == (width, height)
    assert (width < height) == (orientation > 4)


def test_the_reader_of_own_data_has_no_objection(clinic: Path) -> None:
    """And reads the labels, patients and boxes that were written."""
    assert convert(*clinic_arguments(clinic)) == 0
    records = read_records(clinic / "out", findings="all")
    assert records.findings == FINDINGS
    assert [str(name) for name in records.names] == [f"x{k:02d}.jpg" for k in range(40)]
    expected = [[int(name in labels(k)) for name in FINDINGS] for k in range(40)]
    np.testing.assert_array_equal(records.labels, expected)
    boxes = records.boxes[0, FINDINGS.index("Cavity"), :2] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    np.testing.assert_allclose(boxes, [[10, 20, 110.5, 60], [120, 20, 200, 120]], rtol=1e-6)
    np.testing.assert_array_equal(
        records.patients, np.arange(40) // 2
    )  # their names become numbers
