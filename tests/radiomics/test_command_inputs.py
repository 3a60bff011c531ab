"""What the radiomics command makes of image files, masks, boxes and flags that are not plain.

The scene is always the same picture with the same region, saved in many ways: either its row has the region's true
mean and area, or a sentence says why not.
"""

from __future__ import annotations

import csv
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from kacl_jax.radiomics.__main__ import main

MEAN, AREA = "original_firstorder_Mean", "original_shape2D_PixelSurface"
REGION = np.s_[120:190, 20:110]  # 70×90 px in a corner, so that no turn maps it onto itself


def picture() -> np.ndarray:
    """uint8 [200 256], brighter to the right and to the bottom, with noise."""
    rows, columns = np.mgrid[:200, :256]
    noise = np.random.default_rng(0).integers(0, 40, rows.shape)
    return (rows / 2 + columns / 3 + noise).astype(np.uint8)


def region(value: int = 255) -> np.ndarray:
    mask = np.zeros((200, 256), np.uint8)
    mask[REGION] = value
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pixels in (("images", picture()), ("masks", region())):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    (tmp_path / "boxes.csv").write_text("image,x,y,w,h\na.png,20,120,90,70\n")
    return tmp_path


def replace(folder: Path, kind: str, name: str) -> Path:
    """Where the file `name` goes that takes the place of a.png."""
    (folder / kind / "a.png").unlink()
    return folder / kind / name


def run(folder: Path, *more: str, masks: str = "masks") -> int:
    where = [f"--images={folder / 'images'}", f"--out={folder / 'o.csv'}"]
    if not any(word.startswith("--boxes") for word in more):
        where.append(f"--masks={folder / masks}")
    return main([*where, *more])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "o.csv").open() as file:
        return list(csv.DictReader(file))


def check_is_measured(folder: Path, *more: str, scale: float = 1, within: float = 1e-4) -> None:
    assert run(folder, *more) == 0
    (row,) = rows(folder)
    assert row["ready"] == "True", row["reason"]
    assert float(row[AREA]) == 6300
    expected = picture()[REGION].mean() * scale
    assert float(row[MEAN]) == pytest.approx(expected, abs=within)


def check_is_refused(folder: Path, reason: str, *more: str) -> None:
    """A row without features."""
    assert run(folder, *more) == 0
    (row,) = rows(folder)
    assert (row["ready"], row[MEAN]) == ("False", "")
    assert reason in row["reason"]


def check_is_error(folder: Path, capsys, message: str, *more: str, masks: str = "masks") -> None:
    """Nothing is computed."""
    capsys.readouterr()
    assert run(folder, *more, masks=masks) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "o.csv").exists()
    assert not list(folder.glob("*.part"))


# ---- from a file to pixels


def as_stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera that is held differently stores; the inverse of each turn in EXIF 2.3, tag 274."""
    inverse = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(p, 2).T,
        8: lambda p: np.rot90(p, -1),
    }
    return np.ascontiguousarray(inverse[orientation](pixels))


def save_turned(path: Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"tiffinfo": {274: orientation}} if path.suffix == ".tif" else {"exif": exif}
    if path.suffix == ".jpg":
        options |= {"quality": 100}
    Image.fromarray(as_stored(pixels, orientation)).save(path, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_an_orientation_turns_image_and_mask(folder: Path, orientation: int, ending: str) -> None:
    """The mask is saved as the image is, once turned by its tag and once upright."""
    save_turned(replace(folder, "images", f"a.{ending}"), picture(), orientation)
    check_is_measured(folder, within=0.2 if ending == "jpg" else 1e-4)
    mask_ending = "tif" if ending == "tif" else "png"
    save_turned(replace(folder, "masks", f"a.{mask_ending}"), region(), orientation)
    check_is_measured(folder, within=0.2 if ending == "jpg" else 1e-4)


def test_a_jpeg_that_was_cut_is_refused(folder: Path) -> None:
    path = replace(folder, "images", "a.jpg")
    Image.fromarray(picture()).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 6])
    check_is_refused(folder, "is truncated")
    path.write_bytes(
        whole[: len(whole) // 6] + b"\xff\xd9"
    )  # the end marker, as repair programs add it
    check_is_refused(folder, "its data end before the picture")


def test_a_mask_that_is_a_jpeg_needs_a_threshold(folder: Path, capsys) -> None:
    Image.fromarray(region()).save(replace(folder, "masks", "a.jpg"), quality=60)
    check_is_error(folder, capsys, "a.jpg is compressed as JPEG, which blurs its edges")
    check_is_measured(folder, "--threshold=127")


def test_transparent_pixels_are_refused(folder: Path) -> None:
    white = np.full_like(region(), 255)
    see_through = Image.fromarray(np.dstack([white, white, white, region()]))
    see_through.save(replace(folder, "masks", "a.png"))
    check_is_refused(folder, "has transparent pixels")
    opaque = np.dstack([region(), region(), region(), white])
    Image.fromarray(opaque).save(folder / "masks" / "a.png")
    check_is_measured(folder)
    see_through.save(folder / "images" / "a.png")
    check_is_refused(folder, "has transparent pixels")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_14_bits_in_16_are_measured_as_they_are(folder: Path, capsys, ending: str) -> None:
    deep = picture().astype(np.uint16) * 64
    cv2.imwrite(str(replace(folder, "images", f"a.{ending}")), deep)
    check_is_measured(folder, scale=64)
    assert f"own grey values, from {deep.min()} to {deep.max()}" in capsys.readouterr().out


def test_what_is_no_regular_file_is_refused(folder: Path) -> None:
    os.mkfifo(replace(folder, "images", "a.png"))
    check_is_refused(folder, "it is no regular file")
    replace(folder, "images", "a.png").symlink_to("/dev/zero")
    check_is_refused(folder, "it is no regular file")
    replace(folder, "images", "a.png").mkdir()
    check_is_refused(folder, "it is a folder")


def png_without_pixels(side: int) -> bytes:
    """RGB in 16 bits."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    head = chunk(b"IHDR", side.to_bytes(4) * 2 + bytes([16, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_the_header_decides_whether_a_picture_is_too_large(folder: Path) -> None:
    path = replace(folder, "images", "a.png")
    path.write_bytes(png_without_pixels(11585))
    check_is_refused(folder, "is too large (11585 x 11585 pixels; the limit is max_megapixels=64)")
    Image.fromarray(np.zeros((1001, 1000), np.uint8)).save(path)
    check_is_refused(folder, "the limit is max_megapixels=1)", "--max_megapixels=1")
    with path.open("wb") as file:
        file.truncate(9 * 10**6)
    check_is_refused(folder, "is too large (9 MB", "--max_megapixels=1")


def test_colours_have_no_grey_value(folder: Path) -> None:
    grey = picture()
    Image.fromarray(np.dstack([grey] * 3)).save(folder / "images" / "a.png")
    check_is_measured(folder)
    tinted = np.dstack([grey, grey, grey // 2])
    Image.fromarray(tinted).save(folder / "images" / "a.png")
    check_is_refused(folder, "has colours, which have no grey value")
    Image.fromarray(grey).save(folder / "images" / "a.png")
    Image.fromarray(np.dstack([region(), region(0), region(0)])).save(folder / "masks" / "a.png")
    check_is_refused(folder, "has colours; save the mask in grey")


def test_several_pictures_and_cmyk_are_refused(folder: Path) -> None:
    one, other = Image.fromarray(picture()), Image.fromarray(picture().T)
    one.save(folder / "images" / "a.png", save_all=True, append_images=[Image.fromarray(region())])
    check_is_refused(folder, "is an animation")
    path = replace(folder, "images", "a.tif")
    one.save(path, save_all=True, append_images=[other])
    check_is_refused(folder, "holds more than one picture")
    path.unlink()
    Image.merge("CMYK", [one] * 4).save(folder / "images" / "a.jpg")
    check_is_refused(folder, "has CMYK colours")


# ---- masks


def labelled() -> np.ndarray:
    """The labels 1, 2 and 7; the region is label 2."""
    mask = region(2)
    mask[10:40, 10:60], mask[10:30, 100:110] = 1, 7
    return mask


@pytest.mark.parametrize("value", [1, 77, 255])
def test_one_value_is_a_region(folder: Path, value: int) -> None:
    Image.fromarray(region(value)).save(folder / "masks" / "a.png")
    check_is_measured(folder)


def test_several_labels_need_a_choice(folder: Path, capsys) -> None:
    Image.fromarray(labelled()).save(folder / "masks" / "a.png")
    check_is_error(folder, capsys, "a.png has the labels 1, 2, 7; choose one, such as --label=2")
    check_is_measured(folder, "--label=2")
    assert rows(folder)[0]["region"] == "2"
    check_is_refused(folder, "the mask has no label 3; its labels: 1, 2, 7", "--label=3")


def test_all_labels_have_a_row_each(folder: Path) -> None:
    """Each as if it were the only one; an image with one label keeps one row, one without a label is no region."""
    Image.fromarray(labelled()).save(folder / "masks" / "a.png")
    for name, mask in (("b", region()), ("c", region(0))):
        Image.fromarray(picture()).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    assert run(folder, "--label=all") == 0
    together = rows(folder)
    assert [(row["image"], row["region"], row["ready"]) for row in together] == [
        ("a.png", "1", "True"),
        ("a.png", "2", "True"),
        ("a.png", "7", "True"),
        ("b.png", "255", "True"),
        ("c.png", "0", "False"),
    ]
    for row in together[:3]:
        assert run(folder, f"--label={row['region']}") == 0
        assert rows(folder)[0] == row
    assert float(together[1][AREA]) == 6300


def test_a_mask_without_sharp_labels_needs_a_threshold(folder: Path, capsys) -> None:
    blurred = cv2.GaussianBlur(region(), (0, 0), 3)
    Image.fromarray(blurred).save(folder / "masks" / "a.png")
    count = np.unique(blurred).size
    assert count > 32
    check_is_error(folder, capsys, f"a.png has {count} different values: a mask without sharp")
    check_is_error(folder, capsys, "give --threshold=T", "--label=all")
    path = replace(folder, "masks", "a.tif")
    cv2.imwrite(str(path), region() / np.float32(255))
    check_is_error(folder, capsys, "a.tif holds float values")
    check_is_measured(folder, "--threshold=0.5")


def test_the_region_is_above_the_threshold(folder: Path) -> None:
    mask = region(6)
    mask[:50, :50] = 5
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    check_is_measured(folder, "--threshold=5")


def test_an_inverted_mask_is_told(folder: Path, capsys) -> None:
    check_is_measured(folder)
    assert "Warning" not in capsys.readouterr().err
    small = np.zeros((200, 256), np.uint8)
    small[50:150, 50:200] = 255
    band = np.zeros_like(small)
    band[:, :248] = 255  # touches three sides, and covers 97 %
    for mask in (255 - small, band):
        Image.fromarray(mask).save(folder / "masks" / "a.png")
        assert run(folder) == 0
        assert "1 of 1 masks cover over 90 % of their image or touch all four" in (
            capsys.readouterr().err
        )


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_two_files_of_one_name_are_an_error(folder: Path, capsys, kind: str) -> None:
    Image.fromarray(region()).save(folder / kind / "a.tif")
    check_is_error(folder, capsys, f"{kind} has a.png and a.tif, which have the same name")


def test_the_folder_of_the_images_is_no_folder_of_masks(folder: Path, capsys) -> None:
    (folder / "same").symlink_to(folder / "images")
    for masks in ("images", "same"):
        check_is_error(folder, capsys, "is the folder of the images", masks=masks)


@pytest.mark.parametrize("name", ["a_mask.png", "mask_a.png", "a-seg.tif"])
def test_a_mask_of_another_name_is_hinted_at(folder: Path, capsys, name: str) -> None:
    Image.fromarray(region()).save(replace(folder, "masks", name))
    check_is_error(folder, capsys, f"no mask for 1 images (the first is a.png); is it {name}?")


def test_hidden_files_are_no_images(folder: Path) -> None:
    """macOS leaves ._a.png beside a.png."""
    (folder / "images" / "._a.png").write_bytes(b"\0\5\26\7")
    check_is_measured(folder)


def test_a_name_that_is_no_utf8_has_its_row(folder: Path) -> None:
    for kind in ("images", "masks"):
        (folder / kind / "a.png").rename(folder / kind / os.fsdecode(b"\xe4.png"))
    check_is_measured(folder)
    assert rows(folder)[0]["image"] == "\\udce4.png"


# ---- boxes and flags


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,x,y,w,h\na.png,1,1,9,9\n".encode("utf-16"), "is not in UTF-8"),
        ("image,x,y,w,h\na.png,1,1,9,9\n".encode("utf-16-le"), "perhaps in UTF-16"),
        ("image,x,y,w,h\nä.png,1,1,9,9\n".encode("latin-1"), "is not in UTF-8"),
        (b"", "is empty; it needs the columns image, x, y, w, h"),
        (b"image,x,y,w,h\n", "has no box, only column names"),
        (b"image;x;y;w;h\na.png;1;1;9;9\n", "separated by ';'; save it with commas"),
        (b"image\tx\ty\tw\th\n", "separated by '\\t'; save it with commas"),
        (b"a.png,1,1,9,9\n", "needs the columns image, x, y, w, h; it has ['a.png', '1'"),
        (b"image,x,x,y,w,h\na.png,1,1,1,9,9\n", "has the column x twice"),
    ],
)
def test_a_boxes_file_that_cannot_be_used_is_one_sentence(
    folder: Path, capsys, content: bytes, message: str
) -> None:
    (folder / "bad.csv").write_bytes(content)
    check_is_error(folder, capsys, message, f"--boxes={folder / 'bad.csv'}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,1,0,9", "line 2: the box has a width of 0 and a height of 9; both must be above 0"),
        ("1,1,9,-3", "line 2: the box has a width of 9 and a height of -3"),
        ("1,5,2,9,9", "line 2: has more cells than the first line has columns"),
        ("1,1,9", "line 2: x, y, w, h must be numbers"),
        ("1e308,1,1e308,9", "line 2: x, y, w, h must be numbers under 1,000,000,000"),
    ],
)
def test_a_wrong_box_has_its_own_message(folder: Path, capsys, row: str, message: str) -> None:
    (folder / "bad.csv").write_text(f"image,x,y,w,h\na.png,{row}\n")
    assert run(folder, f"--boxes={folder / 'bad.csv'}") == 1
    assert message in capsys.readouterr().err


def test_a_box_outside_and_a_box_under_a_pixel_are_told_apart(folder: Path) -> None:
    (folder / "boxes.csv").write_text("image,x,y,w,h\na.png,900,1,9,9\na.png,5,5,0.2,9\n")
    assert run(folder, f"--boxes={folder / 'boxes.csv'}") == 0
    outside, thin = rows(folder)
    assert "lies outside the image (200, 256)" in outside["reason"]
    assert "is less than one pixel wide or high" in thin["reason"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label=2", "--boxes=B"], "--label and --threshold are for --masks"),
        (["--threshold=2", "--boxes=B"], "--label and --threshold are for --masks"),
        (["--boxes=F"], "is not a file"),
        (["--boxes=B", "--frame=0"], "--frame=0 must be at least 1"),
        (["--frame=1024"], "--frame is for --boxes"),
        (["--label=2", "--threshold=1"], "Give either --label or --threshold"),
        (["--label=two"], "--label=two must be a whole number or all"),
        (["--label=0"], "--label=0 is outside"),
        (["--threshold=nan"], "--threshold=nan must be a number"),
        (["--max_megapixels=0"], "--max_megapixels=0 must be at least 1"),
        (["--part=3/3"], "--part=3/3 must be I/N with I from 0 to N"),
        (["--part=one"], "--part=one must be I/N"),
        (["--merge=0"], "--merge=0 must be at least 1"),
        (["--part=0/2", "--merge=2"], "Give either --part or --merge"),
        (["--bin_count=3", "--bin_count=4"], "--bin_count is given 2 times; give it once"),
        (["--boxes=B", "--boxes", "B"], "--boxes is given 2 times; give it once"),
    ],
)
def test_flags_that_cannot_be_used(folder: Path, capsys, flags: list[str], message: str) -> None:
    places = {"--boxes=B": f"--boxes={folder / 'boxes.csv'}", "--boxes=F": f"--boxes={folder}"}
    check_is_error(folder, capsys, message, *(places.get(flag, flag) for flag in flags))


def test_a_place_that_cannot_be_written_is_told_first(folder: Path, capsys) -> None:
    (folder / "f.csv").mkdir()
    where = [f"--images={folder / 'images'}", f"--boxes={folder / 'boxes.csv'}"]
    for out, message in (
        ("nowhere/o.csv", "cannot be written (No such file or directory)"),
        ("f.csv", "is a folder; give the name of a file"),
        ("boxes.csv", "is the file of the boxes"),
        ("o.xlsx", "must end in .csv or .parquet"),
    ):
        assert main([*where, f"--out={folder / out}"]) == 1
        assert message in capsys.readouterr().err
    assert main([*where, f"--out={folder / 'o.csv'}", "--bin_width=-1"]) == 1
    assert "bin_width is -1.0; it must be > 0" in capsys.readouterr().err
    assert not list(folder.glob("*.part"))


def test_one_unreadable_file_does_not_end_a_batch(folder: Path) -> None:
    for name in "bc":
        for kind in ("images", "masks"):
            (folder / kind / f"{name}.png").write_bytes((folder / kind / "a.png").read_bytes())
    (folder / "masks" / "b.png").write_bytes(b"")
    assert run(folder) == 0
    assert [row["ready"] for row in rows(folder)] == ["True", "False", "True"]
    assert "b.png: is empty (zero bytes)" in rows(folder)[1]["reason"]


def test_many_wrong_boxes_are_counted_and_not_all_listed(folder: Path, capsys) -> None:
    lines = ["image,x,y,w,h", *(f"gone_{k}.png,1,1,9,9" for k in range(500))]
    (folder / "boxes.csv").write_text("\n".join(lines))
    assert run(folder, f"--boxes={folder / 'boxes.csv'}") == 1
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 12
    assert "and 490 more rows" in printed


def test_a_name_that_a_spreadsheet_would_run_is_refused(folder: Path, capsys) -> None:
    for kind in ("images", "masks"):
        (folder / kind / "a.png").rename(folder / kind / "=1+1.png")
    assert run(folder) == 1
    assert "the name '=1+1.png' begins with '='" in capsys.readouterr().err
    assert not (folder / "o.csv").exists()


@pytest.mark.parametrize(
    "table",
    [
        'image,x,y,w,h,note\na.png,20,120,90,70,"mass\na.png,1,1,9,9,\na.png,1,1,9,9,\n',
        'image,x,y,w,h,note\na.png,20,120,90,70,"mass\na.png,1,1,9,9,"\na.png,1,1,9,9,\n',
    ],
)
def test_a_stray_quotation_mark_loses_no_box(folder: Path, capsys, table: str) -> None:
    (folder / "boxes.csv").write_text(table)
    assert run(folder, f"--boxes={folder / 'boxes.csv'}") == 1
    assert "line 2: a quotation mark is not closed in its line" in capsys.readouterr().err


def test_only_plain_numbers_are_numbers(folder: Path, capsys) -> None:
    (folder / "boxes.csv").write_text("image,x,y,w,h\na.png,2_0,120,90,70\n")
    assert run(folder, f"--boxes={folder / 'boxes.csv'}") == 1
    assert "line 2: x, y, w, h must be numbers" in capsys.readouterr().err
