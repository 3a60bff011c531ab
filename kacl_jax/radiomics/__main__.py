"""A folder of images and their regions → a table of radiomic features.

    python -m kacl_jax.radiomics --images=FOLDER --masks=FOLDER --out=features.csv
    python -m kacl_jax.radiomics --images=FOLDER --boxes=boxes.csv --out=features.csv

Masks: one image of the same name and size per image, the region is where it is not 0. Boxes: a CSV with the columns
image, x, y, w, h in pixels of the image, or with --frame=1024 in NIH's frame, as in a run's boxes.csv. Each row of the
table is one region: image, region (its row among the image's boxes), ready, reason, then the 102 features (empty where
there is no number).
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import cv2
import numpy as np
from tqdm import tqdm

from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_AT_ONCE = 64  # regions held in memory
_NOTHING = np.full(len(FEATURE_NAMES), np.nan)
Region = tuple[str, int, Path, Any]  # image name, number, image file, mask file or box


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a user's mistake, 75 interrupted."""
    parser = argparse.ArgumentParser(prog="kacl_jax.radiomics", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument(
        "--masks", type=Path, help="one image of the same name and size each; the region is not 0"
    )
    parser.add_argument("--boxes", type=Path, help="a CSV: image, x, y, w, h in pixels")
    parser.add_argument(
        "--frame", type=int, help="the boxes are in a frame of that side, as NIH's in 1024"
    )
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
    except KeyboardInterrupt:
        print(f"\nStopped; what was computed is in {flags.out}.part", file=sys.stderr)
        return 75
    return 0


def run(
    *,
    images: Path,
    masks: Path | None,
    boxes: Path | None,
    frame: int | None,
    out: Path,
    backend: Literal["pyradiomics", "jax"],
    bin_width: float,
    bin_count: int | None,
) -> None:
    """Write the table. A region that cannot be read or measured is a row that is not ready, with its reason.

    Rows are written as they come, into a file beside `out` that takes its name at the end: what was computed before an
    interruption stays there.

    Raises:
      UserError: before anything is computed, for what concerns the whole table.
    """
    if (masks is None) == (boxes is None):
        raise UserError("Give either --masks or --boxes")
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out={out} must end in .csv or .parquet")
    parquet = _parquet() if out.suffix == ".parquet" else None
    regions = _of_masks(images, masks) if masks is not None else _of_boxes(images, boxes, frame)
    partial = out.with_name(out.name + ".part")
    not_ready = 0
    with (
        _writable(partial) as file,
        tqdm(disable=None, total=len(regions), unit="region", desc=str(out)) as bar,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", "region", "ready", "reason", *FEATURE_NAMES])
        how: dict[str, Any] = {"backend": backend, "bin_width": bin_width, "bin_count": bin_count}
        for start in range(0, len(regions), _AT_ONCE):
            for region, (values, ready, reason) in _measured(
                regions[start : start + _AT_ONCE], how
            ):
                not_ready += not ready
                cells = ["" if np.isnan(value) else float(value) for value in values]
                writer.writerow([region[0], region[1], bool(ready), reason, *cells])
                bar.update()
            file.flush()
    if parquet is not None:
        parquet(partial)
    partial.replace(out)
    if not_ready:
        print(
            f"{not_ready} of {len(regions)} regions have no features; {out} says why in its column 'reason'",
            file=sys.stderr,
        )


def _measured(
    part: Sequence[Region], how: Mapping[str, Any]
) -> Iterator[tuple[Region, tuple[np.ndarray, bool, str]]]:
    """Each region with its features, whether they are there, and if not, why."""
    from kacl_jax.radiomics import extract

    read, problems = _read_all(part)
    images, masks = ([pair[i] for pair in read.values()] for i in (0, 1))
    found = extract(images, masks, dtype="float64", **how)
    measured = dict(zip(read, zip(*found, strict=True), strict=True))
    for k, region in enumerate(part):
        yield region, measured[k] if k in read else (_NOTHING, False, problems[k])


def _read_all(
    part: Sequence[Region],
) -> tuple[dict[int, tuple[np.ndarray, np.ndarray]], dict[int, str]]:
    """By place in `part`: (grey pixels and mask, or why there are none)."""
    read, problems = {}, {}
    for k, region in enumerate(part):
        try:
            pixels, mask = _read(region)
        except UserError as error:
            problems[k] = str(error)
            continue
        if pixels.shape != mask.shape:
            problems[k] = f"the image is {pixels.shape} and its mask {mask.shape}"
        elif not mask.any():
            problems[k] = "the mask is empty"
        else:
            read[k] = pixels, mask
    return read, problems


def _writable(path: Path) -> TextIO:
    try:
        return path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); give another --out"
        ) from error


def _of_masks(images: Path, masks: Path) -> list[Region]:
    found = {path.stem: path for path in _pictures(masks)}
    files = _pictures(images)
    missing = [path.name for path in files if path.stem not in found]
    if missing:
        raise UserError(f"{masks} has no mask for {len(missing)} images, the first is {missing[0]}")
    return [(path.name, 0, path, found[path.stem]) for path in files]


def _of_boxes(images: Path, boxes: Path | None, frame: int | None) -> list[Region]:
    files = {path.name: path for path in _pictures(images)}
    regions: list[Region] = []
    problems, seen = [], dict[str, int]()
    assert boxes is not None
    if not boxes.is_file():
        raise UserError(f"--boxes={boxes} is not a file")
    with boxes.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if not {"image", "x", "y", "w", "h"} <= columns:
            raise UserError(
                f"{boxes} needs the columns image, x, y, w, h; it has {reader.fieldnames}"
            )
        if frame is None and "prior_map_iou" in columns:
            raise UserError(
                f"{boxes} is the boxes.csv of a run, whose boxes are in NIH's frame; add --frame=1024"
            )
        for line, row in enumerate(reader, start=2):
            try:
                box = tuple(float(row[key]) for key in "xywh")
            except (TypeError, ValueError):
                box = (math.nan,)
            if not all(map(math.isfinite, box)):
                problems.append(f"{boxes} line {line}: x, y, w, h must be numbers")
                continue
            if row["image"] not in files:
                problems.append(f"{boxes} line {line}: {row['image']} is not in {images}")
                continue
            number = seen[row["image"]] = seen.get(row["image"], -1) + 1
            regions.append((row["image"], number, files[row["image"]], (box, frame)))
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
    _, _, path, where = region
    pixels = _grey(path)
    if isinstance(where, Path):
        return pixels, _mask(where)
    (x, y, w, h), frame = where
    down, across = (side / frame if frame else 1.0 for side in pixels.shape)
    y0, y1, x0, x1 = (
        max(round(v), 0) for v in (y * down, (y + h) * down, x * across, (x + w) * across)
    )
    mask = np.zeros(pixels.shape, bool)
    mask[y0:y1, x0:x1] = True
    if not mask.any():
        raise UserError(f"the box {(x, y, w, h)} lies outside of the image {pixels.shape}")
    return pixels, mask


def _grey(path: Path) -> np.ndarray:
    """uint8 [h w]; 16 bits become 8 as in training, by the whole range."""
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    if pixels is None:
        raise UserError(f"{path} cannot be read as an image")
    if pixels.dtype == np.uint16:
        if 0 < pixels.max() < 4096:
            raise UserError(
                f"{path} has grey values up to {pixels.max()} in 16 bits; scale them to 0–65535, or to 0–255 in 8 bits"
            )
        return np.asarray((pixels.astype(np.uint32) + 128) // 257, np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(f"{path} holds {pixels.dtype}; it must have 8 or 16 bits")
    return pixels


def _mask(path: Path) -> np.ndarray:
    """bool [h w]: where any channel but opacity is not 0, whatever the depth."""
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if found is None:
        raise UserError(f"{path} cannot be read as an image")
    return found != 0 if found.ndim == 2 else (found[..., :3] != 0).any(-1)


def _parquet() -> Callable[[Path], None]:
    try:
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            "--out=….parquet needs pyarrow: pip install pyarrow, or use .csv"
        ) from error

    def convert(path: Path) -> None:
        """The CSV table at `path` becomes a Parquet table."""
        parquet.write_table(arrow_csv.read_csv(path), path)

    return convert


if __name__ == "__main__":
    sys.exit(main())
