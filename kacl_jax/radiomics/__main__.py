"""A folder of images and their regions → a table of radiomic features.

    python -m kacl_jax.radiomics --images=FOLDER --masks=FOLDER --out=features.csv
    python -m kacl_jax.radiomics --images=FOLDER --boxes=boxes.csv --out=features.csv

Masks: for each image one image of the same name and size; the region is where it is not 0. Boxes: a CSV with the
columns image, x, y, w, h in pixels of the image, or with --frame=1024 in NIH's frame, as in a run's boxes.csv. Each row
of the table is one region: image, region (its number among the image's boxes, from 0), ready, reason, then the 102
features (an empty cell where a feature is NaN).
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

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_REGIONS_AT_ONCE = 64  # regions in memory at once
_NO_FEATURES = np.full(len(FEATURE_NAMES), np.nan)
# (image name, number of the region in its image, image file, mask file or (box, frame))
Region = tuple[str, int, Path, Any]


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
        write_table(**vars(flags))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped; what was computed is in {flags.out}.part", file=sys.stderr)
        return 75
    return 0


def write_table(
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
    """Write the table. A region that cannot be read or has no features gets a row that is not ready, with the reason.

    Rows are written one after the other to a file beside `out`, which is renamed to `out` at the end. After an
    interruption that file still has the rows computed so far.

    Raises:
      UserError: for an error in the arguments or input files as a whole, before anything is computed.
    """
    if (masks is None) == (boxes is None):
        raise UserError("Give either --masks or --boxes")
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out={out} must end in .csv or .parquet")
    convert_to_parquet = _parquet_converter() if out.suffix == ".parquet" else None
    regions = (
        _regions_from_masks(images, masks)
        if masks is not None
        else _regions_from_boxes(images, boxes, frame)
    )
    partial = out.with_name(out.name + ".part")
    not_ready = 0
    with (
        _open_for_writing(partial) as file,
        tqdm(disable=None, total=len(regions), unit="region", desc=str(out)) as progress_bar,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", "region", "ready", "reason", *FEATURE_NAMES])
        options: dict[str, Any] = {
            "backend": backend,
            "bin_width": bin_width,
            "bin_count": bin_count,
        }
        for start in range(0, len(regions), _REGIONS_AT_ONCE):
            for region, (values, ready, reason) in _extract_features(
                regions[start : start + _REGIONS_AT_ONCE], options
            ):
                not_ready += not ready
                cells = ["" if np.isnan(value) else float(value) for value in values]
                writer.writerow([region[0], region[1], bool(ready), reason, *cells])
                progress_bar.update()
            file.flush()
    if convert_to_parquet is not None:
        convert_to_parquet(partial)
    partial.replace(out)
    if not_ready:
        print(
            f"{not_ready} of {len(regions)} regions have no features; {out} says why in its column 'reason'",
            file=sys.stderr,
        )


def _extract_features(
    regions: Sequence[Region], options: Mapping[str, Any]
) -> Iterator[tuple[Region, tuple[np.ndarray, bool, str]]]:
    """Each region with (its features, whether it is ready, the reason why it is not)."""
    from kacl_jax.radiomics import extract

    readable, problems = _read_regions(regions)
    images, masks = ([pair[i] for pair in readable.values()] for i in (0, 1))
    extraction = extract(images, masks, dtype="float64", **options)
    result_from_features = dict(zip(readable, zip(*extraction, strict=True), strict=True))
    for k, region in enumerate(regions):
        yield (
            region,
            result_from_features[k] if k in readable else (_NO_FEATURES, False, problems[k]),
        )


def _read_regions(
    regions: Sequence[Region],
) -> tuple[dict[int, tuple[np.ndarray, np.ndarray]], dict[int, str]]:
    """(grey pixels and mask, reason why there are none), both by position in `regions`."""
    readable, problems = {}, {}
    for k, region in enumerate(regions):
        try:
            pixels, mask = _read_region(region)
        except UserError as error:
            problems[k] = str(error)
            continue
        if pixels.shape != mask.shape:
            problems[k] = f"the image is {pixels.shape} and its mask {mask.shape}"
        elif not mask.any():
            problems[k] = "the mask is empty"
        else:
            readable[k] = pixels, mask
    return readable, problems


def _open_for_writing(path: Path) -> TextIO:
    try:
        return path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); give another --out"
        ) from error


def _regions_from_masks(images: Path, masks: Path) -> list[Region]:
    mask_files = {path.stem: path for path in _list_images(masks)}
    files = _list_images(images)
    missing = [path.name for path in files if path.stem not in mask_files]
    if missing:
        raise UserError(f"{masks} has no mask for {len(missing)} images, the first is {missing[0]}")
    return [(path.name, 0, path, mask_files[path.stem]) for path in files]


def _regions_from_boxes(images: Path, boxes: Path | None, frame: int | None) -> list[Region]:
    files = {path.name: path for path in _list_images(images)}
    regions: list[Region] = []
    problems, last_number = [], dict[str, int]()
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
            number = last_number[row["image"]] = last_number.get(row["image"], -1) + 1
            regions.append((row["image"], number, files[row["image"]], (box, frame)))
    if problems:
        raise UserError("\n  ".join(["The boxes cannot be used:", *problems]))
    return regions


def _list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no image ({', '.join(_IMAGE_SUFFIXES)})")
    return files


def _read_region(region: Region) -> tuple[np.ndarray, np.ndarray]:
    _, _, path, mask_or_box = region
    pixels = _read_grey(path)
    if isinstance(mask_or_box, Path):
        return pixels, _read_mask(mask_or_box)
    (x, y, w, h), frame = mask_or_box
    y_scale, x_scale = (side / frame if frame else 1.0 for side in pixels.shape)
    y0, y1, x0, x1 = (
        max(round(v), 0) for v in (y * y_scale, (y + h) * y_scale, x * x_scale, (x + w) * x_scale)
    )
    mask = np.zeros(pixels.shape, bool)
    mask[y0:y1, x0:x1] = True
    if not mask.any():
        raise UserError(f"the box {(x, y, w, h)} lies outside of the image {pixels.shape}")
    return pixels, mask


def _read_grey(path: Path) -> np.ndarray:
    """uint8 [h w]; 16 bits are scaled to 8 by the full range, as in training."""
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


def _read_mask(path: Path) -> np.ndarray:
    """bool [h w]: where any channel except opacity is not 0, for any bit depth."""
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if mask is None:
        raise UserError(f"{path} cannot be read as an image")
    return mask != 0 if mask.ndim == 2 else (mask[..., :3] != 0).any(-1)


def _parquet_converter() -> Callable[[Path], None]:
    try:
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            "--out=….parquet needs pyarrow: pip install pyarrow, or use .csv"
        ) from error

    def convert(path: Path) -> None:
        """Replace the CSV table at `path` by a Parquet table."""
        parquet.write_table(arrow_csv.read_csv(path), path)

    return convert


if __name__ == "__main__":
    sys.exit(main())
