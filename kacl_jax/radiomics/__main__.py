"""A folder of images and their regions → a table of radiomic features.

    python -m kacl_jax.radiomics --images=FOLDER --masks=FOLDER --out=features.csv
    python -m kacl_jax.radiomics --images=FOLDER --boxes=boxes.csv --out=features.csv

Masks: one image of the same name and size per image, the region is where it is not 0. Boxes: a CSV with the columns
image, x, y, w, h in pixels of the image. Each row of the table is one region: image, region (its row among the
image's boxes), ready, reason, then the 102 features (empty where there is no number).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from tqdm import tqdm

from kacl_jax.errors import UserError
from kacl_jax.radiomics import FEATURE_NAMES

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_AT_ONCE = 64  # regions held in memory
Region = tuple[str, int, Path, Any]  # image name, number, image file, mask file or box


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="kacl_jax.radiomics", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--boxes", type=Path)
    parser.add_argument("--out", type=Path, required=True, help=".csv or .parquet")
    parser.add_argument("--backend", choices=("pyradiomics", "jax"), default="pyradiomics")
    parser.add_argument("--bin_width", type=float, default=25.0)
    parser.add_argument("--bin_count", type=int)
    flags = parser.parse_args(arguments)
    try:
        run(**vars(flags))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def run(
    *,
    images: Path,
    masks: Path | None,
    boxes: Path | None,
    out: Path,
    backend: Literal["pyradiomics", "jax"],
    bin_width: float,
    bin_count: int | None,
) -> None:
    """Write the table; nothing is written when a UserError is raised."""
    from kacl_jax.radiomics.extract import extract

    if (masks is None) == (boxes is None):
        raise UserError("Give either --masks or --boxes")
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out={out} must end in .csv or .parquet")
    parquet = _parquet() if out.suffix == ".parquet" else None
    regions = _of_masks(images, masks) if masks is not None else _of_boxes(images, boxes)
    rows: list[list[Any]] = []
    with tqdm(disable=None, total=len(regions), unit="region", desc=str(out)) as bar:
        for start in range(0, len(regions), _AT_ONCE):
            part = regions[start : start + _AT_ONCE]
            pixels, inside = zip(*(_read(region) for region in part), strict=True)
            try:
                found = extract(
                    pixels,
                    inside,
                    backend=backend,
                    bin_width=bin_width,
                    bin_count=bin_count,
                    dtype="float64",
                )
            except UserError as error:
                named = ", ".join(f"item {k} = {region[0]}" for k, region in enumerate(part))
                raise UserError(f"{error}\n  ({named})") from error
            for region, values, ready, reason in zip(part, *found, strict=True):
                rows.append([region[0], region[1], bool(ready), reason, *map(float, values)])
            bar.update(len(part))
    columns = ["image", "region", "ready", "reason", *FEATURE_NAMES]
    if parquet is not None:
        parquet(out, columns, rows)
        return
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([["" if value != value else value for value in row] for row in rows])


def _of_masks(images: Path, masks: Path) -> list[Region]:
    found = {path.stem: path for path in _pictures(masks)}
    files = _pictures(images)
    missing = [path.name for path in files if path.stem not in found]
    if missing:
        raise UserError(f"{masks} has no mask for {len(missing)} images, the first is {missing[0]}")
    return [(path.name, 0, path, found[path.stem]) for path in files]


def _of_boxes(images: Path, boxes: Path | None) -> list[Region]:
    files = {path.name: path for path in _pictures(images)}
    regions: list[Region] = []
    problems, seen = [], dict[str, int]()
    assert boxes is not None
    if not boxes.is_file():
        raise UserError(f"--boxes={boxes} is not a file")
    with boxes.open(newline="") as file:
        reader = csv.DictReader(file)
        wanted = {"image", "x", "y", "w", "h"}
        if not wanted <= set(reader.fieldnames or ()):
            raise UserError(
                f"{boxes} needs the columns image, x, y, w, h; it has {reader.fieldnames}"
            )
        for line, row in enumerate(reader, start=2):
            try:
                box = tuple(float(row[key]) for key in "xywh")
            except (TypeError, ValueError):
                problems.append(f"{boxes} line {line}: x, y, w, h must be numbers")
                continue
            if row["image"] not in files:
                problems.append(f"{boxes} line {line}: {row['image']} is not in {images}")
                continue
            number = seen[row["image"]] = seen.get(row["image"], -1) + 1
            regions.append((row["image"], number, files[row["image"]], box))
    if problems:
        raise UserError("\n  ".join(["The boxes cannot be used:", *problems]))
    return regions


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise UserError(f"{folder} holds no image ({', '.join(_SUFFIXES)})")
    return found


def _read(region: Region) -> tuple[np.ndarray, np.ndarray]:
    name, _, path, where = region
    pixels = _grey(path)
    if isinstance(where, Path):
        return pixels, _grey(where) > 0
    x, y, w, h = where
    mask = np.zeros(pixels.shape, bool)
    mask[max(round(y), 0) : max(round(y + h), 0), max(round(x), 0) : max(round(x + w), 0)] = True
    if not mask.any():
        raise UserError(f"{name}: the box {where} lies outside of the image {pixels.shape}")
    return pixels, mask


def _grey(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise UserError(f"{path} cannot be read as an image")
    return pixels


def _parquet() -> Any:
    try:
        from pyarrow import parquet, table
    except ImportError as error:
        raise UserError(
            "--out=….parquet needs pyarrow: pip install pyarrow, or use .csv"
        ) from error

    def write(out: Path, columns: list[str], rows: list[list[Any]]) -> None:
        parquet.write_table(
            table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))), out
        )

    return write


if __name__ == "__main__":
    sys.exit(main())
