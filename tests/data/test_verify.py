from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from dicom_file import write_dicom
from PIL import Image
from small_root import small_root

from kacl_jax.data import png_folder
from kacl_jax.data.findings import FINDINGS_8
from kacl_jax.data.records import read_records
from kacl_jax.data.verify import check, format_problems, format_summary
from kacl_jax.images.reader import BrokenImage, read_image
from kacl_jax.prepare import prepare_root
from kacl_jax.runtime.errors import UserError


def broken_root(root: Path) -> Path:
    text = small_root()
    text.labels[0] = text.labels[0].replace("Nodule", "Noddule")
    text.labels.append(text.labels[5])
    text.labels[6] = text.labels[6].replace(",4,44,", ",x,44,")
    text.boxes += [
        text.boxes[0],
        "00000099_000.png,Mass,1,1,1,1,,,",
        "00000009_000.png,Cardiomegaly,1000,1,100,1,,,",
        "00000009_000.png,Effusion,nan,1,100,1,,,",
        "00000009_000.png,Lump,1,1,1,1,,,",
    ]
    text.test += [text.test[0], "00000088_000.png", text.train_val[4], text.train_val[11]]
    text.train_val.remove("00000006_001.png")
    text.train_val.remove("00000005_001.png")
    text.write(root)
    images = root / "images"
    (images / "00000008_000.png").unlink()
    (images / "00000008_001.png").write_bytes(b"")
    (images / "00000009_001.png").write_text("<html>404</html>")
    complete_file = (images / "00000010_001.png").read_bytes()
    (images / "00000010_001.png").write_bytes(complete_file[:-15])
    return root


BROKEN = (
    "Data_Entry_2017.csv: unknown label 'Noddule': row 2 (00000001_000.png). Fix: write 'Nodule'.",
    "Data_Entry_2017.csv: has an image twice: row 26 (00000003_001.png)",
    "Data_Entry_2017.csv: Patient ID is no number: row 8 (00000004_000.png) 'x'",
    "Data_Entry_2017.csv: has an image that neither list names: 00000005_001.png",
    "BBox_List_2017.csv: has a second box of one finding: row 8",
    "BBox_List_2017.csv: names an image that has no label row: row 9 (00000099_000.png Mass)",
    "BBox_List_2017.csv: a box leaves the image: 00000009_000.png Cardiomegaly (1000, 1, 100, 1)",
    "BBox_List_2017.csv: is no box: row 11 (00000009_000.png Effusion) nan, 1, 100, 1",
    "BBox_List_2017.csv: unknown finding 'Lump': row 12",
    "test_list.txt: names an image twice: line 13 (00000007_000.png)",
    "test_list.txt: names an image that has no label row: line 14 (00000088_000.png)",
    "test_list.txt: names an image that train_val_list.txt names too: 00000003_000.png",
    "test_list.txt: shares patients with train_val_list.txt: patient 3, patient 6",
    "images/: of 22 images 1 are missing: 00000008_000.png",
    "images/: a file cannot be read: 00000008_001.png is empty (zero bytes), "
    "00000009_001.png is not a PNG, JPEG, TIFF or BMP file, 00000010_001.png is truncated",
)


def test_a_thoroughly_broken_root_is_told_in_one_go(tmp_path: Path) -> None:
    problems = check(broken_root(tmp_path)).problems
    problem_text = format_problems(problems)
    for expected in BROKEN:
        assert expected in problem_text, problem_text
    assert len(problems) == len(BROKEN), problem_text
    assert all(problem.fix for problem in problems)
    assert problem_text.startswith(f"{len(BROKEN)} problem(s):")
    assert len(problem_text.splitlines()) == len(BROKEN) + 1


def test_reading_for_training_tells_the_same_text(tmp_path: Path) -> None:
    """All but what only decoding and comparing patients can find."""
    root = broken_root(tmp_path)
    with pytest.raises(UserError) as caught:
        read_records(root)
    shared = [str(p) for p in check(root).problems]
    only_here = [line for line in shared if "cannot be read" in line or "shares patients" in line]
    assert str(caught.value).splitlines()[1:] == [s for s in shared if s not in only_here]
    assert len(only_here) == 2


@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "BBox_List_2017.csv", "test_list.txt"])
def test_a_missing_text_file_does_not_end_the_check(tmp_path: Path, name: str) -> None:
    root = small_root().write(tmp_path)
    (root / name).unlink()
    (root / "images" / "00000003_000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    problem_text = format_problems(check(root).problems)
    assert f"{name}: is not in" in problem_text
    assert "a file cannot be read: 00000003_000.png is truncated" in problem_text
    assert problem_text.startswith("2 problem(s)"), problem_text


def test_missing_images_folder(tmp_path: Path) -> None:
    root = small_root().write(tmp_path, images=False)
    (root / "images").rmdir()
    problem_text = format_problems(check(root).problems)
    assert "images/: is not in" in problem_text
    assert "of 24 images 24 are missing: 00000001_000.png" in problem_text
    assert "and 21 more" in problem_text
    with pytest.raises(UserError, match="is not there"):
        check(tmp_path / "nowhere")


def test_a_file_in_two_folders_is_a_problem(tmp_path: Path) -> None:
    root = small_root().write(tmp_path)
    second = root / "images_003" / "images"
    second.mkdir(parents=True)
    name = "00000002_000.png"
    (second / name).write_bytes((root / "images" / name).read_bytes())
    (problem,) = check(root).problems
    assert "lies elsewhere" in str(problem)
    assert problem.examples[0].startswith(name)


def test_the_summary_counts_what_is_no_mistake(tmp_path: Path) -> None:
    text = small_root()
    text.boxes.append("00000012_001.png,Cardiomegaly,1,1,10,10,,,")  # labelled No Finding
    text.labels[3] = text.labels[3].replace(",42,M", ",414,M")
    root = text.write(tmp_path)
    Image.fromarray((np.arange(600) % 251).astype(np.uint8).reshape(20, 30)).save(
        root / "images" / "00000001_000.png"
    )
    (root / "images" / "other.png").write_bytes(b"")
    seen: list[tuple[int, int]] = []
    report = check(root, progress=lambda done, of: seen.append((done, of)))
    assert report.problems == []
    assert not report.problems
    assert seen == [(k, 24) for k in range(1, 25)]
    summary = json.loads(json.dumps(report.summary))
    expected = {
        "images": 24, "patients": 12, "boxed_images": 7, "boxes_without_positive_label": 1,
        "unknown_ages": 1, "views": {"AP": 12, "PA": 12}, "files": 25, "decoded": 24,
        "files_without_label_row": 1, "constant_images": 0,
        "sizes": {"30x20": 1, "24x24": 23},
        "lists": {"train_val_list.txt": 12, "test_list.txt": 12},
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert (summary["boxes"]["Mass"], summary["boxes"]["Cardiomegaly"]) == (3, 1)
    content = (root / "test_list.txt").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert summary["checksums"]["test_list.txt"] == digest
    assert f"sha256 {digest}  test_list.txt" in format_summary(summary)
    assert "sizes: 30x20 1, 24x24 23" in format_summary(summary)


def test_what_the_run_would_go_on_with_is_no_problem(tmp_path: Path) -> None:
    root = broken_root(tmp_path)
    strict, lax = (
        check(root),
        check(root, allow_missing=True, skip_broken=True, official_lists=False),
    )
    whats = {
        "of 22 images 1 are missing",
        "a file cannot be read",
        "shares patients with train_val_list.txt",
    }
    assert {problem.what for problem in lax.non_fatal} == whats
    assert not strict.non_fatal
    assert sorted(map(str, strict.problems)) == sorted(map(str, lax.problems + lax.non_fatal))


def test_twelve_bits_in_sixteen_are_told(tmp_path: Path) -> None:
    root = small_root().write(tmp_path)
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(pixels).save(root / "images" / "00000001_000.png")
    (problem,) = check(root).problems
    assert "nearly black, 95 % of it at or below 16 of 255: 00000001_000.png up to 15" in str(
        problem
    )
    Image.fromarray(pixels * 16).save(root / "images" / "00000001_000.png")
    assert not check(root).problems


def test_a_picture_over_the_limit_counts_as_broken(tmp_path: Path) -> None:
    """For verify as for training and for preparing."""
    root = small_root().write(tmp_path / "root")
    Image.new("L", (1001, 1000)).save(root / "images" / "00000001_000.png")
    assert not check(root, max_megapixels=2).problems
    (problem,) = check(root, max_megapixels=1).problems
    assert "00000001_000.png is too large (1001 x 1000 pixels" in str(problem)
    read_records(root, max_megapixels=2).images.read(0, 16)
    with pytest.raises(BrokenImage, match="the limit is max_megapixels=1"):
        read_records(root, max_megapixels=1).images.read(0, 16)
    options = {"root": root, "size": 16, "workers": 1}
    for limit, broken in ((2, {}), (1, {"images/00000001_000.png"})):
        manifest = prepare_root(**options, out=tmp_path / str(limit), max_megapixels=limit)
        assert set(manifest.broken) == set(broken)


def test_a_root_may_hold_jpeg_and_tiff_files(tmp_path: Path) -> None:
    """Under the names that the tables give, turned as the files say."""
    text = small_root()
    root = text.write(tmp_path)
    pixels = np.arange(600, dtype=np.uint8).reshape(20, 30) % 251
    for name, kind in (("00000001_000", "JPEG"), ("00000001_001", "TIFF")):
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(pixels).save(root / "images" / f"{name}.png", kind, exif=exif)
    report = check(root)
    assert not report.problems
    assert report.summary["sizes"]["20x30"] == 2


def test_boxes_in_the_images_own_pixels_are_told(tmp_path: Path) -> None:
    text = small_root()
    findings = sorted(FINDINGS_8)
    images = [line.split(",")[0] for line in text.labels[:24]]
    text.boxes[:] = [f"{image},{findings[0]},14,3,10,21,,," for image in images]
    root = text.write(tmp_path / "root")
    # One large image once hid the boxes of all others.
    cv2.imwrite(
        str(root / "images" / images[0]), np.arange(1 << 20, dtype=np.uint8).reshape(1024, 1024)
    )
    (problem,) = check(root).problems
    expected = (
        "of 23 boxes on files under 1024 px 23 end within the file, as if they were in its pixels"
    )
    assert expected in str(problem)
    prepare_root(root=root, out=tmp_path / "prepared", size=16, workers=1)
    assert expected in "".join(map(str, check(tmp_path / "prepared").problems))
    # In NIH's frame every second box ends beyond such a file.
    text.boxes[::2] = [f"{image},{findings[0]},500,3,10,21,,," for image in images[::2]]
    assert not check(text.write(tmp_path / "other")).problems


def test_boxes_of_files_that_are_not_square_are_judged_each_on_its_own(tmp_path: Path) -> None:
    """1024 × 820 px: only the lower edge can show it, and it takes more boxes."""
    text = small_root(patients=60, boxed=0)
    heights = np.random.default_rng(0).integers(100, 790, 60)
    text.boxes = [
        f"{line.split(',')[0]},Mass,500,{height - 90},100,90,,,"
        for line, height in zip(text.labels[::2], heights, strict=True)
    ]
    root = text.write(tmp_path)
    pixels = np.zeros((820, 1024), np.uint8)
    pixels[:, ::2] = 255
    for name in text.names:
        cv2.imwrite(str(root / "images" / name), pixels)
    (problem,) = check(root).problems
    assert "of 60 boxes on files under 1024 px 60 end within the file" in str(problem)
    for row in range(0, 60, 10):
        image = text.boxes[row].split(",")[0]
        text.boxes[row] = f"{image},Mass,500,740,100,90,,,"
    (root / "BBox_List_2017.csv").unlink()
    assert not check(text.write(root, images=False)).problems


def test_corner_boxes_are_told(tmp_path: Path) -> None:
    """x0, y0, x1, y1 under NIH's header; training refuses them, too."""
    text = small_root(boxed=12)
    text.boxes = [
        f"{row.split(',')[0]},{row.split(',')[1]},{100 + 9 * k},{90 + 9 * k},{300 + 9 * k},{400 + 9 * k},,,"
        for k, row in enumerate(text.boxes)
    ]
    (problem,) = check(text.write(tmp_path)).problems
    assert "as if w and h were the right and lower edge" in str(problem)
    with pytest.raises(UserError, match="as if w and h were the right and lower edge"):
        read_records(tmp_path)


@pytest.mark.parametrize(("bits", "share"), [(13, 8), (14, 4), (15, 2)])
def test_fewer_bits_than_the_file_has_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bits: int, share: int
) -> None:
    """Also in a prepared set, and while it is prepared. A burned-in 65535 hides nothing."""
    text = small_root()
    root = text.write(tmp_path / "root")
    pixels = np.linspace(0, 2**bits - 1, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels[:4, :4] = 65535
    for name in text.names:
        cv2.imwrite(str(root / "images" / name), pixels)
    (problem,) = check(root).problems
    assert f"24 images of 16 bits use at most 1/{share} of the grey range" in str(problem)
    prepare_root(root=root, out=tmp_path / "prepared", size=16, workers=1)
    (same,) = check(tmp_path / "prepared").problems
    assert str(same) == str(problem)
    assert str(problem) in caplog.text
    cv2.imwrite(str(root / "images" / text.names[0]), pixels * np.uint16(2 ** (16 - bits)))
    assert check(root).problems  # one bright film of 24 is not a set in range


def test_twelve_bits_with_a_burned_in_white_are_told(tmp_path: Path) -> None:
    root = small_root().write(tmp_path)
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    pixels[:4, :10] = 65535
    cv2.imwrite(str(root / "images" / "00000001_000.png"), pixels)
    (problem,) = check(root).problems
    assert "a file is nearly black" in str(problem)


def test_a_set_of_black_images_is_a_problem(tmp_path: Path) -> None:
    text = small_root()
    root = text.write(tmp_path / "root")
    for name in text.names[:13]:
        cv2.imwrite(str(root / "images" / name), np.zeros((24, 24), np.uint8))
    (problem,) = check(root).problems
    assert "13 of 24 images have one grey value only" in str(problem)
    prepare_root(root=root, out=tmp_path / "prepared", size=16, workers=1)
    (same,) = check(tmp_path / "prepared").problems
    assert str(same) == str(problem)


def test_the_check_picture_shows_the_boxes(tmp_path: Path) -> None:
    """Twelve images, first those with a box; each box where its fractions put it."""
    text = small_root()
    root = text.write(tmp_path)
    picture = check(root).picture
    assert picture is not None
    tile = picture[8 : 8 + 320, 8 : 8 + 320].astype(int)  # the first boxed image, 00000007_000
    x, y, w, h = (round(side * 320 / 1024) for side in (10.5 * 7, 256, 128, 64))
    coloured = np.ptp(tile, axis=-1) > 60
    edges = (np.s_[y, x : x + w], np.s_[y + h, x : x + w], np.s_[y : y + h, x], np.s_[y : y + h, x + w])  # fmt: skip
    assert all(coloured[edge].all() for edge in edges)
    assert not coloured[y + 2 : y + h - 1, x + 2 : x + w - 1].any()
    text.boxes.clear()
    assert check(text.write(tmp_path / "none")).picture is not None


def test_a_dicom_that_is_no_chest_x_ray_counts_as_broken(tmp_path: Path) -> None:
    root = small_root().write(tmp_path)
    file = root / "images" / "00000001_000.png"
    pixels = read_image(file)
    write_dicom(file, pixels)
    assert not check(root).problems
    file.write_bytes(file.read_bytes().replace(b"PA", b"LL"))
    (problem,) = check(root).problems
    assert "00000001_000.png is no frontal view by its tag ViewPosition (LL)" in str(problem)
    file.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    (problem,) = check(root).problems
    assert "00000001_000.png has no pixels" in str(problem)


def test_a_folder_that_may_not_be_read_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_root().write(tmp_path)

    def refuse(folder: Path) -> None:  # root, who runs tests, may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(png_folder.os, "scandir", refuse)
    assert "images/: cannot be read (Permission denied)" in "\n".join(
        map(str, check(root).problems)
    )


def test_real_roots_pass(nih_root: Path, nih_original_root: Path) -> None:
    original = check(nih_original_root)
    assert not original.problems
    assert original.summary["sizes"] == {"1024x1024": 14}
    subset = check(nih_root)
    assert not subset.problems
    assert subset.summary["decoded"] == 1_788
    assert sum(subset.summary["boxes"].values()) == 698


def test_all_of_nih_counts(nih_metadata_root: Path) -> None:
    report = check(nih_metadata_root, findings=14)
    assert {problem.file for problem in report.problems} == {"images/"}  # there is none
    summary = report.summary
    assert (summary["images"], summary["patients"]) == (112_120, 30_805)
    assert summary["lists"] == {"train_val_list.txt": 86_524, "test_list.txt": 25_596}
    assert summary["positives"]["Infiltration"] == 19_894
    assert summary["boxed_images"] == 880
    assert sum(summary["boxes"][finding] for finding in FINDINGS_8) == 984
    assert summary["boxes_without_positive_label"] == 0
