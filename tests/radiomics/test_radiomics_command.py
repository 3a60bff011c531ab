"""The command that turns a folder of images and regions into a table."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from kacl_jax.radiomics import FEATURE_NAMES, table_file
from kacl_jax.radiomics.__main__ import main
from kacl_jax.radiomics.host import Extractor
from kacl_jax.radiomics.image_folder import Region


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for name in "ab":
        pixels = random.integers(0, 256, (40, 50), dtype=np.uint8)
        mask = np.zeros((40, 50), np.uint8)
        mask[5:25, 10:45] = 255
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), pixels)
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), mask)
    (tmp_path / "boxes.csv").write_text("image,x,y,w,h\na.png,10,5,35,20\na.png,3,3,1,1\n")
    return tmp_path


def run(folder: Path, *more: str) -> int:
    return main([f"--images={folder / 'images'}", *more])


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_masks_and_boxes_give_pyradiomics_values(folder: Path) -> None:
    assert run(folder, f"--masks={folder / 'masks'}", f"--out={folder / 'm.csv'}") == 0
    assert run(folder, f"--boxes={folder / 'boxes.csv'}", f"--out={folder / 'b.csv'}") == 0
    masks, boxes = table(folder / "m.csv"), table(folder / "b.csv")
    assert [row["image"] for row in masks] == ["a.png", "b.png"]
    pixels = cv2.imread(str(folder / "images" / "a.png"), cv2.IMREAD_GRAYSCALE)
    mask = np.zeros(pixels.shape, bool)
    mask[5:25, 10:45] = True
    expected = Extractor().extract(pixels, mask)
    for row in (masks[0], boxes[0]):
        np.testing.assert_array_equal([float(row[name]) for name in FEATURE_NAMES], expected)
    assert [row["region"] for row in boxes] == ["0", "1"]
    assert (boxes[1]["ready"], boxes[1]["reason"]) == ("False", "one pixel")
    assert boxes[1][FEATURE_NAMES[0]] == ""


def test_boxes_in_another_frame_are_those_of_the_image(folder: Path) -> None:
    """As a spreadsheet saves them: with a byte order mark."""
    text = (
        "\ufeffimage,x,y,w,h\n" + f"a.png,{1024 * 10 / 50},{1024 * 5 / 40},{1024 * 35 / 50},512\n"
    )
    (folder / "nih.csv").write_text(text, encoding="utf-8")
    for name, more in (("boxes", ()), ("nih", ("--frame=1024",))):
        assert (
            run(folder, f"--boxes={folder / name}.csv", *more, f"--out={folder / name}.out.csv")
            == 0
        )
    ours, same = (table(folder / f"{name}.out.csv")[0] for name in ("boxes", "nih"))
    assert ours == same


def test_what_is_deeper_than_eight_bits(folder: Path, capsys) -> None:
    """A file's own values are measured: 14 bits in 16, floats, and labels of 1 in 16 bits."""
    images, masks = folder / "images", folder / "masks"
    shallow = cv2.imread(str(images / "a.png"), cv2.IMREAD_GRAYSCALE)
    region = cv2.imread(str(masks / "a.png"), cv2.IMREAD_GRAYSCALE) > 0
    deep, floats = shallow.astype(np.uint16) * 64, shallow / np.float32(7) - 3
    for name, pixels in (("b.png", deep), ("c.tif", floats)):
        cv2.imwrite(str(images / name), pixels)
        cv2.imwrite(str(masks / f"{name[0]}.png"), region.astype(np.uint16))
    assert run(folder, f"--masks={masks}", f"--out={folder / 'm.csv'}") == 0
    for row, pixels in zip(table(folder / "m.csv"), (shallow, deep, floats), strict=True):
        expected = Extractor().extract(pixels.astype(np.float32), region)
        np.testing.assert_array_equal([float(row[name]) for name in FEATURE_NAMES], expected)
        assert float(row["original_firstorder_Mean"]) == pytest.approx(pixels[region].mean())
    said = capsys.readouterr().out
    assert f"own grey values, from {floats.min():g} to {deep.max()}" in said


def test_parquet_holds_the_same(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("m.csv", "m.parquet"):
        assert run(folder, f"--masks={folder / 'masks'}", f"--out={folder / name}") == 0
    rows = parquet.read_table(folder / "m.parquet").to_pylist()
    assert [float(r[FEATURE_NAMES[9]]) for r in table(folder / "m.csv")] == [
        r[FEATURE_NAMES[9]] for r in rows
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--masks=M", "--boxes=B"], "either --masks or --boxes"),
        (["--masks=nowhere"], "nowhere is not a folder"),
        (["--boxes=nowhere"], "nowhere is not a file"),
        (["--boxes=X"], "line 2: x, y, w, h must be numbers"),
        (["--boxes=X"], "line 3: c.png is not in"),
        (["--boxes=X"], "line 4: x, y, w, h must be numbers"),
        (["--boxes=R"], "in NIH's frame; add --frame=1024"),
    ],
)
def test_mistakes_are_named(folder: Path, capsys, arguments, message) -> None:
    (folder / "bad.csv").write_text(
        "image,x,y,w,h\na.png,1,one,3,3\nc.png,1,1,9,9\na.png,nan,1,9,9\n"
    )
    (folder / "run.csv").write_text(
        "image,finding,x,y,w,h,iou,prior_map_iou\na.png,Mass,1,1,9,9,,\n"
    )
    places = {"M": folder / "masks", "B": folder / "boxes.csv", "X": folder / "bad.csv"}
    places["R"] = folder / "run.csv"
    made = [f"{a.split('=')[0]}={places.get(a.split('=')[1], a.split('=')[1])}" for a in arguments]
    assert run(folder, *made, f"--out={folder / 'o.csv'}") == 1
    assert message in capsys.readouterr().err
    assert not (folder / "o.csv").exists()


def test_what_cannot_be_read_is_a_row_with_its_reason(folder: Path, capsys) -> None:
    images, masks = folder / "images", folder / "masks"
    for name in "cde":
        (images / f"{name}.png").write_bytes((images / "a.png").read_bytes())
    cv2.imwrite(str(masks / "c.png"), np.zeros((40, 50), np.uint8))
    cv2.imwrite(str(masks / "d.png"), np.ones((20, 50), np.uint8))
    (masks / "e.png").write_bytes((masks / "a.png").read_bytes())
    (images / "e.png").write_bytes(b"not a picture")
    assert run(folder, f"--masks={masks}", f"--out={folder / 'm.csv'}") == 0
    rows = table(folder / "m.csv")
    assert [row["ready"] for row in rows] == ["True", "True", "False", "False", "False"]
    reasons = [row["reason"] for row in rows]
    assert reasons[:4] == [
        "",
        "",
        "the mask is empty",
        "the image is (40, 50), but its mask is (20, 50)",
    ]
    assert "e.png: is not a PNG" in reasons[4]
    assert "3 of 5 regions have no features" in capsys.readouterr().err
    assert not list(folder.glob("*.part"))


def test_rows_computed_before_an_interruption_stay(folder: Path, monkeypatch) -> None:
    def interrupted(region: Region, max_megapixels: int) -> tuple[np.ndarray, np.ndarray]:
        if region.image == "b.png":
            raise KeyboardInterrupt
        return read(region, max_megapixels)

    read = Region.read
    monkeypatch.setattr(table_file, "_REGIONS_AT_ONCE", 1)
    monkeypatch.setattr(Region, "read", interrupted)
    assert run(folder, f"--masks={folder / 'masks'}", f"--out={folder / 'm.csv'}") == 75
    assert [row["image"] for row in table(folder / "m.csv.part")] == ["a.png"]


def test_regions_of_few_grey_levels_are_counted(folder: Path, capsys) -> None:
    pixels = cv2.imread(str(folder / "images" / "a.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(folder / "images" / "b.png"), pixels // 200)
    assert run(folder, f"--masks={folder / 'masks'}", f"--out={folder / 'm.csv'}") == 0
    assert "Warning: 1 of 2 regions have one or two grey levels" in capsys.readouterr().err
    rows = table(folder / "m.csv")
    assert [(row["ready"], row["reason"]) for row in rows] == [
        ("True", ""),
        ("True", "one or two grey levels"),
    ]


@pytest.mark.parametrize("backend", ["jax", "pyradiomics"])
def test_any_number_of_workers_writes_the_same_bytes(folder: Path, backend) -> None:
    for workers in (1, 2):
        more = (
            f"--backend={backend}",
            f"--workers={workers}",
            f"--out={folder / f'{workers}.csv'}",
        )
        assert run(folder, f"--masks={folder / 'masks'}", *more) == 0
    assert (folder / "1.csv").read_bytes() == (folder / "2.csv").read_bytes()


@pytest.mark.parametrize("backend", ["jax", "pyradiomics"])
@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_joined_parts_are_the_table_of_one_call(folder: Path, capsys, backend, kind) -> None:
    """Byte for byte, with more parts than images, too; incomplete or mixed parts are refused."""
    images, masks = folder / "images", folder / "masks"
    for name in ("c", "d", "e"):  # a large region, several labels, no image
        shutil.copy(images / "a.png", images / f"{name}.png")
        shutil.copy(masks / "b.png", masks / f"{name}.png")
    cv2.imwrite(str(masks / "d.png"), np.arange(2000, dtype=np.uint8).reshape(40, 50) // 9)
    (images / "e.png").write_bytes(b"broken")
    rows = "".join(f"{name}.png,{x},5,20,{9 + x}\n" for x in range(3) for name in "cabc")
    (folder / "boxes.csv").write_text(f"image,x,y,w,h\n{rows}")
    flags = [f"--backend={backend}", "--workers=1"]
    flags += ["--label=all"] * (kind == "masks")
    flags += [f"--{kind}={masks if kind == 'masks' else folder / 'boxes.csv'}"]
    assert run(folder, *flags, f"--out={folder / 'one.csv'}") == 0
    flags += [f"--out={folder / 'all.csv'}"]
    for n in (1, 3, 7):
        assert run(folder, *flags, f"--merge={n}") == 1
        assert not (folder / "all.csv").exists()
        for part in range(n):
            assert run(folder, *flags, f"--part={part}/{n}") == 0
        assert run(folder, *flags, f"--merge={n}") == 0
        assert (folder / "all.csv").read_bytes() == (folder / "one.csv").read_bytes()
        (folder / "all.csv").unlink()
    capsys.readouterr()
    assert run(folder, *flags, "--bin_width=9", "--part=1/3") == 0
    assert run(folder, *flags, "--merge=3") == 1
    assert "all.csv.1of3 was made with other settings" in capsys.readouterr().err
    assert run(folder, *flags, "--part=1/3") == 0
    whole = (folder / "all.csv.1of3").read_bytes()
    for length in (len(whole) - 1, whole.rindex(b"{"), whole.index(b"\n") + 1):
        (folder / "all.csv.1of3").write_bytes(whole[:length])
        assert run(folder, *flags, "--merge=3") == 1
        assert "all.csv.1of3 is cut; run --part=1/3 again" in capsys.readouterr().err
    for part in (1, 2):
        (folder / f"all.csv.{part}of3").unlink()
    assert run(folder, *flags, "--merge=3") == 1
    said = capsys.readouterr().err
    assert "all.csv.1of3 is missing; run --part=1/3 (2 of 3 parts are missing: 1, 2)" in said
    assert not (folder / "all.csv").exists()
    shutil.copy(images / "a.png", images / "f.png")  # the other parts do not know it
    shutil.copy(masks / "a.png", masks / "f.png")
    for part in (1, 2):
        assert run(folder, *flags, f"--part={part}/3") == 0
    assert run(folder, *flags, "--merge=3") == 1
    assert "all.csv.0of3 was made with other settings, images" in capsys.readouterr().err


def test_compiled_programs_stay_in_the_users_cache(folder: Path) -> None:
    """The second call compiles nothing: it adds no file."""
    cache = folder / "cache"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    paths = {"images": folder / "images", "masks": folder / "masks", "out": folder / "o.csv"}
    flags = ["--backend=jax", "--workers=1", *(f"--{k}={path}" for k, path in paths.items())]
    counts = []
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-m", "kacl_jax.radiomics", *flags],
            cwd=Path(__file__).parents[2],
            env={**environment, "XDG_CACHE_HOME": str(cache)},
            check=True,
            capture_output=True,
        )
        counts.append(len(list((cache / "kacl_jax" / "radiomics").glob("*-cache"))))
    assert counts[0] == counts[1] > 0
