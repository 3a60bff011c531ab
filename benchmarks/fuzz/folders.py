"""Masks of many sorts, folders, files that are no files, tables of boxes, and arguments of the command."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.fuzz import formats, scene
from benchmarks.fuzz.judge import REFUSED, Bins, Case, Region, Row, either, same
from benchmarks.fuzz.scene import Kind, Random, measured, plain_png

TEN = Bins(10.0)
WARNING = r"warn|invert|sides|90 ?%"


def _pair(random: Random, folder: Path, name: str = "a.png") -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask, both written."""
    pixels = scene.picture(random)
    mask = scene.region(random, pixels.shape)
    write_pair(folder, pixels, scene.as_mask(random, mask), name)
    return pixels, mask


def write_pair(folder: Path, pixels: np.ndarray, mask: np.ndarray, name: str = "a.png") -> None:
    scene.write(folder, {f"images/{name}": plain_png(pixels), f"masks/{name}": plain_png(mask)})


# ---- masks -----------------------------------------------------------------------------------------------------


def mask_labels(random: Random, folder: Path, turn: int) -> Case:
    """Several labels: refused without --label; one label's region with --label=L; a row each with --label=all."""
    pixels, region = _pair(random, folder)
    labels = sorted(
        random.choice(np.arange(1, 30), int(random.integers(2, 6)), replace=False).tolist()
    )
    columns = np.array_split(np.flatnonzero(region.any(0)), len(labels))
    painted = np.zeros(region.shape, np.uint8)
    for label, part in zip(labels, columns, strict=True):
        painted[:, part] = np.where(region[:, part], label, 0)
    write_pair(folder, pixels, painted)
    chosen = str(random.choice([*map(str, labels), "all", "", ""]))
    if not chosen or "--label" not in scene.command_flags():
        rows = [REFUSED, scene.with_bystander(random, folder)]
        return measured(f"labels {labels}, none chosen", folder, rows, TEN, whole_may_refuse=True)
    regions = labels if chosen == "all" else [int(chosen)]
    rows = [either(Region(pixels, painted == label)) for label in regions]  # a part may be a line
    rows = [row._replace(may_refuse=_is_line(row.truths[0].mask)) for row in rows]
    return measured(f"labels {labels}, {chosen}", folder, rows, TEN, f"--label={chosen}")


def _is_line(mask: np.ndarray) -> bool:
    return min(int(mask.any(0).sum()), int(mask.any(1).sum())) < 2


def mask_soft(random: Random, folder: Path, turn: int) -> Case:
    """More than 32 values: refused without --threshold."""
    pixels, region = _pair(random, folder)
    soft = np.where(
        region, random.integers(150, 256, region.shape), random.integers(0, 90, region.shape)
    )
    write_pair(folder, pixels, soft.astype(np.uint8))
    if random.random() < 0.5 or "--threshold" not in scene.command_flags():
        rows = [REFUSED, scene.with_bystander(random, folder)]
        return measured("soft mask", folder, rows, TEN, whole_may_refuse=True)
    return measured("soft mask over 120", folder, [same(pixels, region)], TEN, "--threshold=120")


def mask_inverted(random: Random, folder: Path, turn: int) -> Case:
    """A region of over 90 % of the image, or one that touches all four sides: values, with a warning."""
    pixels, region = _pair(random, folder)
    inverted = ~region
    if random.random() < 0.5:
        inverted = np.zeros(region.shape, bool)
        inverted[1:, 1:] = True
    if random.random() < 0.3:
        inverted = np.ones(region.shape, bool)
    write_pair(folder, pixels, scene.as_mask(random, inverted))
    loud = inverted.mean() > 0.9 or all(
        line.any() for line in (inverted[0], inverted[-1], inverted[:, 0], inverted[:, -1])
    )
    return measured(
        "inverted mask", folder, [same(pixels, inverted)], TEN, must_say=WARNING if loud else ""
    )


def mask_odd(random: Random, folder: Path, turn: int) -> Case:
    """Masks that have nothing to measure, another shape, or one unusual value."""
    pixels, region = _pair(random, folder)
    value = int(random.integers(2, 255))
    one, line = np.zeros_like(region), np.zeros_like(region)
    one[5, 7] = line[9, 3:17] = True
    ways: dict[str, tuple[np.ndarray, Row]] = {
        "empty": (np.zeros(region.shape, np.uint8), REFUSED),
        "one pixel": (one.astype(np.uint8), REFUSED),
        "a line": (line.astype(np.uint8) * 255, REFUSED),
        "another shape": (region[1:].astype(np.uint8), REFUSED),
        "turned": (np.ascontiguousarray(region[:, :-1].T).astype(np.uint8), REFUSED),
        "one value": (region.astype(np.uint8) * np.uint8(value), either(Region(pixels, region))),
        "1 in 16 bits": (region.astype(np.uint16), same(pixels, region)),
        "65535 in 16 bits": (region.astype(np.uint16) * 65535, either(Region(pixels, region))),
        "red": (region[..., None] * np.array([255, 0, 0], np.uint8), either(Region(pixels, region))),
    }  # fmt: skip
    way = scene.take(ways, turn)
    painted, row = ways[way]
    write_pair(folder, pixels, painted)
    return measured(way, folder, [row, scene.with_bystander(random, folder)], TEN)


# ---- folders ---------------------------------------------------------------------------------------------------


def special_file(random: Random, folder: Path, turn: int) -> Case:
    """Something named .png that is no file with pixels."""
    _pair(random, folder)
    role = str(random.choice(["images", "masks", "reader"]))
    path = folder / ("images" if role == "reader" else role) / "a.png"
    path.unlink()
    way = scene.take(
        [
            "FIFO",
            "/dev/zero",
            "/dev/null",
            "/dev/tty",
            "folder",
            "socket",
            "broken link",
            "empty",
            "link to itself",
        ],
        turn,
    )
    if way == "FIFO":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(path.parent)  # the path of a socket must be short
            server.bind(path.name)
    elif way == "empty":
        path.touch()
    else:
        path.symlink_to({"broken link": "nowhere.png", "link to itself": "a.png"}.get(way, way))
    if role == "reader":
        return Case(f"{way} in training", lambda: scene.reader(path), [REFUSED])
    rows = [REFUSED, scene.with_bystander(random, folder)]
    return measured(f"{way} in {role}", folder, rows, TEN)


def huge_picture(random: Random, folder: Path, turn: int) -> Case:
    """A header of many pixels, or a small file that is really that large: no time and memory may go into it."""
    _pair(random, folder)
    sides = [(11585, 11585), (60000, 60000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (65535, 30000)]
    w, h = sides[int(random.integers(0, len(sides)))]
    wide = w == 11585
    stream = formats.zeros_stream((6 * w + 1) * h if wide else 1000)
    header = formats.png_header(w, h, 16, 2) if wide else formats.png_header(w, h)
    data = formats.png([header, (b"IDAT", stream), (b"IEND", b"")])
    scene.write(folder, {"images/a.png": data, "boxes.csv": b"image,x,y,w,h\na.png,2,2,20,20\n"})
    (folder / "masks/a.png").unlink()
    if random.random() < 0.4:
        return Case(
            f"{w} x {h} in training", lambda: scene.reader(folder / "images/a.png"), [REFUSED]
        )
    return measured(f"{w} x {h}", folder, [REFUSED], TEN, f"--boxes={folder / 'boxes.csv'}")


def folder_pairs(random: Random, folder: Path, turn: int) -> Case:
    """Images and masks that do not go together."""
    pixels, mask = _pair(random, folder)
    images, masks = folder / "images", folder / "masks"
    ways: dict[str, Callable[[], object]] = {
        "two images a": lambda: scene.write(folder, {"images/a.tif": formats.tiff([pixels[::-1]])}),
        "two masks a": lambda: scene.write(folder, {"masks/a.tif": formats.tiff([mask * np.uint8(1)])}),
        "masks are the images": lambda: shutil.rmtree(masks),
        "no mask": lambda: (masks / "a.png").rename(masks / "b.png"),
        "mask a_mask": lambda: (masks / "a.png").rename(masks / "a_mask.png"),
        "no image": lambda: (images / "a.png").rename(images / "a.txt"),
        "no folder": lambda: shutil.rmtree(images),
    }  # fmt: skip
    way = scene.take(ways, turn)
    ways[way]()
    if way == "masks are the images":
        masks.symlink_to(images)
    rows = [REFUSED] * (2 if way == "two images a" else 1)
    hint = "_mask" if way == "mask a_mask" else ""
    return measured(way, folder, rows, TEN, whole_may_refuse=True, must_say=hint)


def file_names(random: Random, folder: Path, turn: int) -> Case:
    """Names that are hard to read or to write; the last one is not UTF-8."""
    pixels, mask = _pair(random, folder)
    names = [
        "A.PNG",
        "a,b.png",
        "a\nb.png",
        'a"b.png',
        "é.png",
        "a b.png",
        "a.b.png",
        "-a.png",
        "\udcff.png",
    ]
    name = scene.take(names, turn)
    for place in ("images", "masks"):
        (folder / place / "a.png").rename(folder / place / name)
    odd = name == "\udcff.png"
    rows = [same(pixels, mask)._replace(may_refuse=odd)]
    return measured(ascii(name), folder, rows, TEN, whole_may_refuse=odd)


# ---- boxes -----------------------------------------------------------------------------------------------------


def _box_mask(shape: tuple[int, ...], box: tuple[float, ...]) -> np.ndarray:
    x, y, w, h = (int(v) for v in box)
    mask = np.zeros(shape, bool)
    mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = True
    return mask


def box_values(random: Random, folder: Path, turn: int) -> Case:
    """Boxes inside, over the side, without a side, negative, huge, and no numbers."""
    pixels, _ = _pair(random, folder)
    boxes = {
        "inside": (3, 4, 12, 9),
        "over the side": (-3, 5, 12, 10),
        "far over": (5, 5, 1e9, 1e9),
        "outside": (500, 4, 9, 9),
        "width 0": (3, 4, 0, 9),
        "height 0": (3, 4, 9, 0),
        "negative": (12, 12, -9, -9),
        "a line": (3, 4, 1, 9),
        "small": (3, 4, 1e-9, 9),
        "1e300": (2, 2, 1e300, 9),
        "1e308": (1e308, 4, 1e308, 9),
        "nan": (3, 4, float("nan"), 9),
        "inf": (3, 4, float("inf"), 9),
    }
    way = scene.take(boxes, turn)
    text = "image,x,y,w,h\n" + "a.png," + ",".join(map(str, boxes[way])) + "\na.png,2,3,11,14\n"
    scene.write(folder, {"boxes.csv": text.encode()})
    first = REFUSED
    if way in ("inside", "over the side", "far over", "1e300"):
        limited = tuple(min(v, 10_000) for v in boxes[way])
        first = either(Region(pixels, _box_mask(pixels.shape, limited)))._replace(
            may_refuse=way != "inside"
        )
    rows = [first, same(pixels, _box_mask(pixels.shape, (2, 3, 11, 14)))]
    flag = f"--boxes={folder / 'boxes.csv'}"
    # A box of width 0 does not lie outside of the image.
    hint = r"\A(?!.*outside)" if 0 in boxes[way][2:] else ""
    whole = way != "inside"
    return measured(f"box {way}", folder, rows, TEN, flag, whole_may_refuse=whole, must_say=hint)


def box_text(random: Random, folder: Path, turn: int) -> Case:
    """The table in another encoding or with another layout."""
    pixels, _ = _pair(random, folder)
    good = "image,x,y,w,h\na.png,2,3,11,14\n"
    right, refused = [same(pixels, _box_mask(pixels.shape, (2, 3, 11, 14)))], [REFUSED]
    perhaps = [right[0]._replace(may_refuse=True)]
    ways: dict[str, tuple[bytes, list[Row]]] = {
        "byte order mark": (good.encode("utf-8-sig"), right),
        "Windows lines": (good.replace("\n", "\r\n").encode(), right),
        "old Mac lines": (good.replace("\n", "\r").encode(), perhaps),
        "more columns": (b"label,h,w,y,x,image\nMass,14,11,3,2,a.png\n", right),
        "quotes": (b'"image","x","y","w","h"\n"a.png","2","3","11","14"\n', right),
        "UTF-16": (good.encode("utf-16"), perhaps),
        "UTF-16 without mark": (good.encode("utf-16-le"), perhaps),
        "Latin-1": (good.replace("a.png", "ä.png").encode("latin-1"), refused),
        "no bytes": (b"", refused),
        "only the header": (b"image,x,y,w,h\n", refused),
        "only empty lines": (b"image,x,y,w,h\n\n\n", refused),
        "semicolons": (good.replace(",", ";").encode(), perhaps),
        "tabs": (good.replace(",", "\t").encode(), perhaps),
        "zero bytes": (good.encode() + bytes(40), perhaps),
        "only zero bytes": (bytes(100), refused),
        "a short row": (good.encode() + b"a.png,2\n", [right[0], REFUSED]),
        "a field too many": (good.replace("14\n", "14,7,8\n").encode(), perhaps),
        "an open quote": (good.encode() + b'"a.png,2,3,11,14\n', [right[0], REFUSED]),
        "a huge field": (good.encode() + b"a" * 200_000 + b",2,3,11,14\n", [right[0], REFUSED]),
        "no h": (b"image,x,y,w\na.png,2,3,11\n", refused),
        "a picture": (plain_png(pixels), refused),
        "another image": (b"image,x,y,w,h\nb.png,2,3,11,14\n", refused),
        "decimal commas": (b'image,x,y,w,h\na.png,"2,0","3,0","11,0","14,0"\n', perhaps),
    }
    way = scene.take(ways, turn)
    data, rows = ways[way]
    scene.write(folder, {"boxes.csv": data})
    return measured(
        way,
        folder,
        rows,
        TEN,
        f"--boxes={folder / 'boxes.csv'}",
        whole_may_refuse=rows is not right,
    )


def box_frame(random: Random, folder: Path, turn: int) -> Case:
    """--frame=N: boxes in a square frame of that side."""
    side = int(random.choice([32, 64]))
    pixels = np.resize(scene.picture(random), (side, side))
    _pair(random, folder)
    frame = int(random.choice([1024, side, 0, -1024]))
    scale = abs(frame) // side
    box = ",".join(str(v * (scale or 1)) for v in (2, 3, 11, 14))
    scene.write(
        folder,
        {"images/a.png": plain_png(pixels), "boxes.csv": f"image,x,y,w,h\na.png,{box}\n".encode()},
    )
    rows = [same(pixels, _box_mask(pixels.shape, (2, 3, 11, 14))) if frame > 0 else REFUSED]
    flags = (f"--boxes={folder / 'boxes.csv'}", f"--frame={frame}")
    return measured(f"frame {frame}", folder, rows, TEN, *flags, whole_may_refuse=frame <= 0)


# ---- arguments -------------------------------------------------------------------------------------------------


def arguments(random: Random, folder: Path, turn: int) -> Case:
    """Flags with odd values."""
    pixels, mask = _pair(random, folder)
    right = [same(pixels, mask)]
    perhaps, refused = [right[0]._replace(may_refuse=True)], [REFUSED]
    (folder / "folder.csv").mkdir()
    ways: dict[str, tuple[list[Row], Bins, tuple[str, ...]]] = {
        **{f"bin_width {v}": (refused, TEN, (f"--bin_width={v}",)) for v in ("nan", "0", "-5", "ten", "")},
        "bin_width inf": (perhaps, Bins(float("inf")), ("--bin_width=inf",)),
        "bin_width 1e12": (right, Bins(1e12), ("--bin_width=1e12",)),
        "bin_width 1e-12": (perhaps, Bins(1e-12), ("--bin_width=1e-12",)),
        "bin_width 1e-320": (perhaps, Bins(1e-320), ("--bin_width=1e-320",)),
        "bin_count 0": (refused, TEN, ("--bin_count=0",)),
        "bin_count 2.5": (refused, TEN, ("--bin_count=2.5",)),
        "bin_count 7": (right, Bins(count=7), ("--bin_count=7",)),
        "bin_count 1": (right, Bins(count=1), ("--bin_count=1",)),
        "bin_count 1e9": (perhaps, Bins(count=10**9), ("--bin_count=1000000000",)),
        "bin_count 1e20": (perhaps, Bins(count=10**20), (f"--bin_count={10**20}",)),
        "jax": (right, TEN, ("--backend=jax",)),
        "jax, bin_count 50000": (perhaps, Bins(count=50000), ("--backend=jax", "--bin_count=50000")),
        "another backend": (refused, TEN, ("--backend=torch",)),
        "out is a folder": (refused, TEN, (f"--out={folder / 'folder.csv'}",)),
        "out has no folder": (refused, TEN, (f"--out={folder / 'nowhere' / 'o.csv'}",)),
        "out without suffix": (refused, TEN, (f"--out={folder / 'o'}",)),
        "images are a file": (refused, TEN, (f"--images={folder / 'images' / 'a.png'}",)),
        "masks are a file": (refused, TEN, (f"--masks={folder / 'masks' / 'a.png'}",)),
        "boxes and masks": (refused, TEN, (f"--masks={folder / 'masks'}", f"--boxes={folder / 'masks'}")),
        "boxes are a folder": (refused, TEN, (f"--boxes={folder / 'masks'}",)),
        "neither boxes nor masks": (refused, TEN, ("--masks=",)),
        "unknown flag": (refused, TEN, ("--bin_size=10",)),
        "workers 2": (right, TEN, ("--workers=2",)),
        "workers 0": (perhaps, TEN, ("--workers=0",)),
        "workers -1": (refused, TEN, ("--workers=-1",)),
    }  # fmt: skip
    way = scene.take(ways, turn)
    rows, bins, more = ways[way]
    if way == "workers 2" and "--workers" not in scene.command_flags():
        more = ()
    return measured(way, folder, rows, bins, *more, whole_may_refuse=rows is not right)


KINDS: dict[str, Kind] = {
    "mask_labels": mask_labels,
    "mask_soft": mask_soft,
    "mask_inverted": mask_inverted,
    "mask_odd": mask_odd,
    "special_file": special_file,
    "huge_picture": huge_picture,
    "folder_pairs": folder_pairs,
    "file_names": file_names,
    "box_values": box_values,
    "box_text": box_text,
    "box_frame": box_frame,
    "arguments": arguments,
}
