from __future__ import annotations

import dataclasses
import gzip
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_root import BOX_HEADER, LABEL_HEADER, small_root

from kacl_jax.data.findings import FINDINGS_8, FINDINGS_14
from kacl_jax.data.records import Records, from_nih_pixels, read_records, to_nih_pixels
from kacl_jax.images.reader import read_image
from kacl_jax.images.resizing import resize
from kacl_jax.runtime.errors import UserError


def same(one: Records, other: Records, *, but: tuple[str, ...]) -> None:
    for key in {f.name for f in dataclasses.fields(Records)} - set(but):
        np.testing.assert_array_equal(getattr(one, key), getattr(other, key), err_msg=key)


def message(root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read_records(root, **options)  # type: ignore[arg-type]
    return str(caught.value)


# ---- layout and text files


def test_records_say_what_the_files_say(tmp_path: Path) -> None:
    records = read_records(small_root(patients=4, boxed=2).write(tmp_path))
    assert records.names.tolist() == [f"{p:08d}_{k:03d}.png" for p in (1, 2, 3, 4) for k in (0, 1)]
    assert records.patients.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert records.findings == FINDINGS_8
    assert records.labels[:, FINDINGS_8.index("Nodule")].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert records.labels[:, FINDINGS_8.index("Mass")].tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    assert records.labels.sum() == 4
    assert records.official_test.tolist() == [False] * 4 + [True] * 4
    assert np.argwhere(records.has_box).tolist() == [
        [4, FINDINGS_8.index("Nodule")],
        [6, FINDINGS_8.index("Mass")],
    ]
    np.testing.assert_allclose(
        records.boxes[4, FINDINGS_8.index("Nodule")] * 1024, [[31.5, 256, 159.5, 320]], rtol=1e-6
    )
    assert not records.boxes[~records.has_box].any()
    assert records.age.tolist() == [41, 41, 42, 42, 43, 43, 44, 44]
    assert records.view.tolist() == ["PA", "AP"] * 4
    assert set(records.sex) == {"M"}
    dtypes = {key: getattr(records, key).dtype for key in ("patients", "labels", "boxes")}
    assert dtypes == {"patients": np.int64, "labels": np.int8, "boxes": np.float32}


def test_folders_names_and_gz_make_no_difference(tmp_path: Path) -> None:
    plain = read_records(small_root().write(tmp_path / "a"))
    other = small_root().write(tmp_path / "b")
    (other / "Data_Entry_2017.csv").rename(other / "Data_Entry_2017_v2020.csv")
    for path in [p for p in other.iterdir() if p.is_file()]:
        (other / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    for k, path in enumerate(sorted((other / "images").iterdir())):
        folder = other / f"images_{k % 12 + 1:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    (other / "images").rmdir()
    records = read_records(other)
    same(plain, records, but=("root", "images", "checksums"))
    assert [p.name for p in records.images.paths] == [p.name for p in plain.images.paths]
    assert all(path.is_file() for path in records.images.paths)
    # The checksum is that of the content: unpacking a file does not make another data set.
    assert sorted(records.checksums.values()) == sorted(plain.checksums.values())
    assert "Data_Entry_2017_v2020.csv" in records.checksums


def test_bom_line_ends_and_column_order_make_no_difference(tmp_path: Path) -> None:
    root = small_root().write(tmp_path / "a")
    plain = read_records(root)
    path = root / "Data_Entry_2017.csv"
    lines = path.read_text().replace("Patient Gender", "Patient Sex").splitlines()
    cells = [line.split(",") for line in lines]
    turned = [",".join(["extra", *reversed(row)]) for row in cells]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(turned).encode() + b"\r\n\r\n")
    same(plain, read_records(root), but=("checksums",))


def test_no_finding_is_dropped(tmp_path: Path) -> None:
    text = small_root(patients=2, per_patient=1, boxed=0)
    text.labels = [
        "00000001_000.png,Hernia|Infiltration|Pleural_Thickening,0,1,058Y,F,PA,1,1,1,1,",
        "00000002_000.png,No Finding,0,2,414Y,F,PA,1,1,1,1,",
    ]
    text.boxes = ["00000001_000.png,Infiltrate,0,0,1024,512,,,"]
    root = text.write(tmp_path)
    eight, fourteen = read_records(root), read_records(root, findings=14)
    assert [FINDINGS_8[j] for j in np.flatnonzero(eight.labels[0])] == ["Infiltration"]
    named = [FINDINGS_14[j] for j in np.flatnonzero(fourteen.labels[0])]
    assert named == ["Infiltration", "Pleural_Thickening", "Hernia"]
    assert not fourteen.labels[1].any()
    assert eight.has_box[0, FINDINGS_8.index("Infiltration")]
    assert eight.boxes[0, FINDINGS_8.index("Infiltration")].tolist() == [[0, 0, 1, 0.5]]
    assert eight.age.tolist() == [58, -1]
    assert "findings=9 does not fit" in message(root, findings=9)


@pytest.mark.parametrize(
    ("text", "years"),
    [("58", 58), ("058Y", 58), ("013M", 1), ("004D", 0), ("414", -1), ("", -1), ("old", -1)],
)
def test_ages(tmp_path: Path, text: str, years: int) -> None:
    small = small_root(patients=2, per_patient=1, boxed=0)
    small.labels[0] = f"00000001_000.png,Mass,0,1,{text},M,PA,1,1,1,1,"
    assert read_records(small.write(tmp_path)).age[0] == years


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = small_root()
    text.labels[0] = text.labels[0].replace("Nodule", "Noddule")
    text.labels[1] = text.labels[1].replace("No Finding", "No Finding|Mass")
    text.labels.append(text.labels[5])
    text.labels.append("../../etc/passwd,Mass,0,1,40,M,PA,1,1,1,1,")
    text.labels[4] = text.labels[4].replace(",3,43,", ",P3,43,")
    text.boxes += [
        text.boxes[0],
        "00000099_000.png,Mass,1,1,1,1,,,",
        "00000009_000.png,Cardiomegaly,1000,1,100,1,,,",
        "00000009_000.png,Effusion,one,1,100,1,,,",
        "00000009_000.png,Pneumonia,1,1,0,1,,,",
        "00000009_000.png,Lump,1,1,1,1,,,",
        "00000009_000.png,Mass,.2,.3,.4,.5,,,",
    ]
    text.test += [text.test[0], "00000088_000.png", text.train_val[6]]
    text.train_val.remove("00000001_001.png")
    error_text = message(text.write(tmp_path))
    for expected in (
        "Data_Entry_2017.csv: unknown label 'Noddule': row 2 (00000001_000.png). Fix: write 'Nodul",
        "'No Finding' beside a finding: row 3",
        "has an image twice: row 26 (00000003_001.png)",
        "no plain file name: row 27 (../../etc/passwd)",
        "Patient ID is no number: row 6 (00000003_000.png) 'P3'",
        "BBox_List_2017.csv: has a second box of one finding: row 8",
        "names an image that has no label row: row 9 (00000099_000.png Mass)",
        "a box leaves the image: 00000009_000.png Cardiomegaly",
        "is no box: row 11 (00000009_000.png Effusion) one, 1, 100, 1, row 12 (",
        "unknown finding 'Lump'",
        "a box has a side under 8 px: 00000009_000.png Mass (0.2, 0.3, 0.4, 0.5)",
        "test_list.txt: names an image twice: line 13",
        "test_list.txt: names an image that has no label row: line 14",
        "test_list.txt: names an image that train_val_list.txt names too: 00000004_000.png",
        "Data_Entry_2017.csv: has an image that neither list names: 00000001_001.png",
    ):
        assert expected in error_text, error_text


def test_a_thousand_like_mistakes_are_one_line(tmp_path: Path) -> None:
    text = small_root(patients=300, boxed=0)
    text.labels = [line.replace("No Finding", "Nothing") for line in text.labels]
    error_text = message(text.write(tmp_path, images=False), check_images=False)
    assert error_text.count("Nothing") == 1
    assert "row 3 (00000001_001.png), row 5 (00000002_001.png), row 7" in error_text
    assert "and 297 more" in error_text


def test_missing_columns_and_semicolons_are_named(tmp_path: Path) -> None:
    root = small_root().write(tmp_path)
    path = root / "Data_Entry_2017.csv"
    path.write_text(path.read_text().replace("Finding Labels", "Labels").replace("View ", "Vew "))
    (root / "BBox_List_2017.csv").write_text(BOX_HEADER.replace(",", ";") + "\n")
    error_text = message(root)
    assert "Data_Entry_2017.csv: has no column: 'Finding Labels', 'View Position'" in error_text
    assert "separated by ';'" in error_text
    assert "line 1" not in error_text  # without labels the lists are not blamed


def test_short_rows_and_unreadable_files_are_named(tmp_path: Path) -> None:
    root = small_root().write(tmp_path)
    (root / "Data_Entry_2017.csv").write_text(f"{LABEL_HEADER}\n00000001_000.png,Mass\n")
    (root / "test_list.txt").rename(root / "old")
    packed = gzip.compress((root / "old").read_bytes())
    (root / "test_list.txt.gz").write_bytes(packed[: len(packed) // 2])
    error_text = message(root)
    assert "has a row with too few cells: row 2" in error_text
    assert "test_list.txt.gz: cannot be read" in error_text


def test_a_root_that_is_no_root_is_told_in_one_sentence(tmp_path: Path) -> None:
    assert "is not there" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    error_text = message(tmp_path / "empty")
    assert "is empty" in error_text
    assert "BBox_List_2017.csv" in error_text
    root = small_root().write(tmp_path / "a")
    (root / "test_list.txt").unlink()
    (root / "BBox_List_2017.csv").unlink()
    error_text = message(root)
    assert "test_list.txt: is not in" in error_text
    assert "BBox_List_2017.csv: is not in" in error_text
    both = small_root().write(tmp_path / "b")
    (both / "Data_Entry_2017_v2020.csv").write_text("")
    assert "lies beside Data_Entry_2017_v2020.csv" in message(both)


def test_missing_images(tmp_path: Path) -> None:
    root = small_root().write(tmp_path)
    all_records = read_records(root)
    gone = ["00000002_001.png", "00000009_000.png"]
    for name in gone:
        (root / "images" / name).unlink()
    error_text = message(root)
    assert "of 24 images 2 are missing: 00000002_001.png, 00000009_000.png." in error_text
    assert "--config.data.allow_missing=True" in error_text
    part = read_records(root, allow_missing=True)
    assert part.missing == tuple(gone)
    kept = ~np.isin(all_records.names, gone)
    for key in ("names", "patients", "labels", "boxes", "has_box", "official_test"):
        np.testing.assert_array_equal(getattr(part, key), getattr(all_records, key)[kept])
    assert read_records(root, check_images=False).names.size == 24
    for path in (root / "images").iterdir():
        path.unlink()
    assert "has none of the 24 image files" in message(root, allow_missing=True)


def test_counts_of_all_of_nih(nih_metadata_root: Path) -> None:
    """paper.md §2, counted there from NIH's own files."""
    start = time.perf_counter()
    records = read_records(nih_metadata_root, check_images=False, findings=14)
    assert time.perf_counter() - start < 20  # 2 s on a free core
    test, patients = records.official_test, records.patients
    assert records.names.size == 112_120
    assert np.unique(patients).size == 30_805
    assert (np.sum(~test), np.sum(test)) == (86_524, 25_596)
    assert (np.unique(patients[~test]).size, np.unique(patients[test]).size) == (28_008, 2_797)
    boxed = records.has_box.any(1)
    assert records.has_box.sum() == 984
    assert boxed.sum() == 880
    assert np.unique(patients[boxed]).size == 726
    assert test[boxed].all()
    assert np.isin(patients[test], patients[boxed]).sum() == 15_938
    assert np.sum((records.labels > records.has_box)[boxed, :8].any(1)) == 521
    assert dict(zip(FINDINGS_8, records.has_box.sum(0).tolist(), strict=False)) == {
        "Atelectasis": 180, "Effusion": 153, "Cardiomegaly": 146, "Infiltration": 123,
        "Pneumonia": 120, "Pneumothorax": 98, "Mass": 85, "Nodule": 79,
    }  # fmt: skip
    positives = {
        "Atelectasis": (8_280, 3_279), "Cardiomegaly": (1_707, 1_069), "Effusion": (8_659, 4_658),
        "Infiltration": (13_782, 6_112), "Mass": (4_034, 1_748), "Nodule": (4_708, 1_623),
        "Pneumonia": (876, 555), "Pneumothorax": (2_637, 2_665),
    }  # fmt: skip
    for finding, expected in positives.items():
        column = records.labels[:, FINDINGS_14.index(finding)].astype(bool)
        assert (np.sum(column & ~test), np.sum(column & test)) == expected, finding
    assert records.age.min() >= 0


def test_the_real_subset(nih_root: Path, nih_original_root: Path) -> None:
    records = read_records(nih_root)
    assert records.names.size == 1_788
    assert records.has_box.sum() == 698
    assert not records.missing
    original = read_records(nih_original_root)
    small = read_records(nih_root)
    for i, name in enumerate(original.names):
        image = read_image(original.images.paths[i])
        assert image.shape == (1024, 1024)
        oracle = np.asarray(Image.open(original.images.paths[i]).convert("L"))
        np.testing.assert_array_equal(image, oracle)
        j = np.flatnonzero(small.names == name)
        if j.size:  # the subset was reduced by 2×2 means
            halved = read_image(small.images.paths[j[0]])
            assert np.abs(resize(image, 512).astype(int) - halved).max() <= 1


# ---- coordinates


def test_boxes_survive_the_round_trip() -> None:
    """paper.md §5's box, and random ones: within 1e-3 of an NIH pixel."""
    golden = np.array([225.084745762712, 547.019216763771, 86.7796610169491, 79.1864406779661])
    box = from_nih_pixels(golden)
    assert box.dtype == np.float32
    np.testing.assert_allclose(box * 1024, [225.0847, 547.0192, 311.8644, 626.2057], atol=1e-3)
    np.testing.assert_allclose(to_nih_pixels(box), golden, atol=1e-3)
    rng = np.random.default_rng(0)
    many = rng.uniform(0, 512, (7, 3, 4))
    np.testing.assert_allclose(to_nih_pixels(from_nih_pixels(many)), many, atol=1e-3)


def test_the_data_layer_imports_neither_jax_nor_grain() -> None:
    code = (
        "import sys, kacl_jax.data.batches, kacl_jax.data.verify\n"
        "assert not {'jax', 'grain', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
