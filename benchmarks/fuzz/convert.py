"""Tables, boxes and COCO files for kacl_jax.convert: rewritten harmlessly, and with changed bytes.

The answer is a picture of the tables that were written: a row for each image and finding with its label, and a row for
each box with its sides.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fuzz.judge import Answer, Case, Region, either, same
from benchmarks.fuzz.scene import Kind, Random, listen, plain_png, take, write

_HEIGHT, _WIDTH, _FRAME = 40, 64, 1024  # of every image, and of NIH's frame
_FINDINGS = ("Cyst", "Mass", "Nodule")
_NO_REGION = np.zeros(0, bool)
_SEPARATOR_FLAGS = {",": ",", ";": ";", "\t": "tab"}


class _Scene(NamedTuple):
    """labels: 0 or 1, [images findings]. boxes: (image, finding, x, y, w, h), in pixels with one decimal."""

    labels: np.ndarray
    boxes: list[tuple[int, int, float, float, float, float]]

    def truth(self) -> np.ndarray:
        rows = [[i, c, int(label), 0, 0, 0] for (i, c), label in np.ndenumerate(self.labels)]
        return np.array([*rows, *self.boxes], np.float64)


def _scene(random: Random, folder: Path) -> _Scene:
    """Six images with their files, and one more file, which has no row; each positive label has up to two boxes."""
    labels = (random.random((6, len(_FINDINGS))) < 0.4).astype(int)
    labels[np.arange(3), np.arange(3)] = 1  # each finding is somewhere
    boxes = []
    for i, c in np.argwhere(labels):
        for _ in range(random.integers(0, 3)):
            w, h = random.uniform(2, (_WIDTH / 2, _HEIGHT / 2)).round(1)
            x, y = (random.uniform(0, 1, 2) * (_WIDTH - w, _HEIGHT - h)).round(1)
            boxes.append((int(i), int(c), float(x), float(y), float(w), float(h)))
    pixels = np.zeros((_HEIGHT, _WIDTH), np.uint8)
    write(folder, {f"images/{_name(i)}": plain_png(pixels) for i in range(len(labels) + 1)})
    return _Scene(labels, boxes)


def _name(i: int) -> str:
    return f"é {i}.png"


def _tables(
    scene: _Scene, sep: str = ",", corners: bool = False, unit: str = "pixels"
) -> tuple[str, str]:
    """The table of images and that of boxes."""
    cells = [
        "|".join(f for f, one in zip(_FINDINGS, row, strict=True) if one) for row in scene.labels
    ]
    rows = [["image", "Dx", "who"]]
    rows += [[_name(i), cell or "normal", f"p{i // 2}"] for i, cell in enumerate(cells)]
    box_rows = [["image", "finding", "x", "y", "w", "h"]]
    for i, c, x, y, w, h in scene.boxes:
        sides = np.array([x, y, x + w, y + h] if corners else [x, y, w, h])
        side = np.array([_WIDTH, _HEIGHT] * 2)
        scale = {"pixels": 1, "fractions": 1 / side, "nih": _FRAME / side}[unit]
        box_rows.append([_name(i), _FINDINGS[c], *(f"{v:.9f}" for v in sides * scale)])
    texts = ("".join(f"{sep.join(row)}\n" for row in table) for table in (rows, box_rows))
    return next(texts), next(texts)


def _coco(scene: _Scene) -> dict[str, Any]:
    annotations = [{"image_id": i, "category_id": c} for i, c in np.argwhere(scene.labels).tolist()]
    annotations += [
        {"image_id": i, "category_id": c, "bbox": sides} for i, c, *sides in scene.boxes
    ]
    return {
        "images": [{"id": i, "file_name": _name(i), "patient_id": i // 2} for i in range(6)],
        "categories": [{"id": c, "name": name} for c, name in enumerate(_FINDINGS)],
        "annotations": [{"id": n, **item} for n, item in enumerate(annotations)],
    }


def _ask(folder: Path, *flags: str) -> Answer:
    from kacl_jax.convert.__main__ import main

    before = set(folder.iterdir())
    out = folder / "out"
    code, text = listen(lambda: main([*flags, f"--images={folder / 'images'}", f"--out={out}"]))
    if code != 0:
        left = {path.name for path in set(folder.iterdir()) - before}
        # A folder that a refused command leaves is a row too many.
        return Answer([(None, text)] * (1 + len(left)), text)
    return Answer([(np.array(list(_written(out))), "")], text)


def _written(out: Path) -> Iterator[list[float]]:
    with (out / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert {row["image"] for row in rows} == {path.name for path in (out / "images").iterdir()}
    number = {_name(i): i for i in range(6)}
    for row in rows:
        for c, finding in enumerate(_FINDINGS):
            yield [number[row["image"]], c, float(row[finding] or "nan"), 0, 0, 0]
    if (out / "annotations.csv").exists():
        with (out / "annotations.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                sides = (round(float(row[side]), 3) for side in "xywh")
                yield [number[row["image"]], _FINDINGS.index(row["finding"]), *sides]


def _table_flags(folder: Path, ending: str = "") -> list[str]:
    return [
        "--from=table",
        f"--in={folder / 'table.csv'}{ending}",
        f"--boxes={folder / 'boxes.csv'}{ending}",
        "--columns=image=image,labels=Dx,patient=who",
    ]


def harmless(random: Random, folder: Path, turn: int) -> Case:
    """The same content in another form."""
    scene = _scene(random, folder)
    ways = (
        "plain",
        "separator",
        "corners",
        "fractions",
        "nih",
        "lines",
        "mark",
        "quotes",
        "gz",
        "coco",
    )
    way = take(ways, turn)
    truth = same(scene.truth(), _NO_REGION)
    if way == "coco":
        write(folder, {"c.json": json.dumps(_coco(scene)).encode()})
        flags = ["--from=coco", f"--in={folder / 'c.json'}"]
        return Case(way, lambda: _ask(folder, *flags), [truth])
    sep = str(random.choice([";", "\t"])) if way == "separator" else ","
    unit = way if way in ("fractions", "nih") else "pixels"
    texts = _tables(scene, sep, way == "corners", unit)
    flags = [*_table_flags(folder, ".gz" if way == "gz" else ""), f"--box_unit={unit}"]
    flags.append(f"--separator={_SEPARATOR_FLAGS[sep]}")
    if way == "corners":
        flags.append("--box_columns=image=image,finding=finding,x0=x,y0=y,x1=w,y1=h")
    for name, text in zip(("table.csv", "boxes.csv"), texts, strict=True):
        if way == "quotes":
            quoted = (",".join(f'"{cell}"' for cell in row.split(",")) for row in text.splitlines())
            text = "".join(f"{row}\n" for row in quoted)
        data = text.replace("\n", "\r\n" if way == "lines" else "\n").encode()
        data = b"\xef\xbb\xbf" + data if way == "mark" else data
        write(
            folder,
            {f"{name}.gz" if way == "gz" else name: gzip.compress(data) if way == "gz" else data},
        )
    return Case(way, lambda: _ask(folder, *flags), [truth])


def must_refuse(random: Random, folder: Path, turn: int) -> Case:
    """One row that nobody may take."""
    scene = _scene(random, folder)
    table, boxes = _tables(scene)
    first, spare, row = _name(0), _name(len(scene.labels)), f"{_name(0)},{_FINDINGS[0]}"
    ways = {
        "an image twice": (f"{first},normal,p0\n", ""),
        "no file": ("z.png,normal,p9\n", ""),
        "a formula": (f"{spare},=Mass,p9\n", ""),
        "a blank cell": (f"{spare},,p9\n", ""),
        "an open quotation mark": (f'"{spare},normal,p9\n', ""),
        "a box beyond its image": ("", f"{row},60,1,5,5\n"),
        "a box without an area": ("", f"{row},1,1,0,5\n"),
        "a box in fractions": ("", f"{row},0.1,0.1,0.5,0.5\n"),
        "no number": ("", f"{row},1,1,five,5\n"),
        "a decimal comma": ("", f'{row},1,1,"5,5",5\n'),
        "an unknown finding": ("", f"{first},Masss,1,1,5,5\n"),
        "a quotation mark in a box": ("", f'"{row},1,1,5,5\n'),
        "a row cut short": ("", f"{row},1,1\n"),
    }  # fmt: skip
    way = take(ways, turn)
    write(folder, {"table.csv": (table + ways[way][0]).encode()})
    write(folder, {"boxes.csv": (boxes + ways[way][1]).encode()})
    return Case(way, lambda: _ask(folder, *_table_flags(folder)), [either()])


def damaged_coco(random: Random, folder: Path, turn: int) -> Case:
    """A value of the file is of another sort: refused, or without effect."""
    scene = _scene(random, folder)
    content = _coco(scene)
    keys = ("images id", "images file_name", "annotations image_id", "annotations category_id", "annotations bbox",
            "categories id", "categories name")  # fmt: skip
    place, key = take(keys, turn).split()
    values = (
        None,
        True,
        -5,
        1.5,
        float("nan"),
        10**400,
        "",
        "\ud800",
        "=a",
        "a\nb",
        {},
        [[]],
        ["1"] * 4,
    )
    value = values[int(random.integers(len(values)))]
    item = content[place][int(random.integers(len(content[place])))]
    item[key] = value
    write(folder, {"c.json": json.dumps(content).encode()})
    flags = ["--from=coco", f"--in={folder / 'c.json'}"]
    what = f"{place} {key}: {str(value)[:20]!a}"
    truths = (Region(scene.truth(), _NO_REGION),)
    if (
        key == "bbox" and value is None
    ):  # an annotation without a box, whose image keeps the finding
        left = [box for a, box in zip(content["annotations"][-len(scene.boxes) :], scene.boxes, strict=False)
                if a.get("bbox") is not None]  # fmt: skip
        truths = (Region(scene._replace(boxes=left).truth(), _NO_REGION),)
    return Case(what, lambda: _ask(folder, *flags), [either(*truths)])


KINDS: dict[str, Kind] = {
    "convert_harmless": harmless,
    "convert_refused": must_refuse,
    "convert_coco": damaged_coco,
}
