"""Regions from a CSV file of boxes: the columns image, x, y, w, h."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from kacl_jax.radiomics.image_folder import Region, list_images
from kacl_jax.runtime.errors import UserError

_MAX_SIDE = 10**9  # pixels
_MAX_PROBLEMS = 10  # named in an error
_COLUMNS = ("image", "x", "y", "w", "h")


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the image as it is seen, or in a frame of side `frame` that the image fills."""

    x: float
    y: float
    w: float
    h: float
    frame: int | None

    def mask(self, size: tuple[int, int], max_megapixels: int) -> Bool[np.ndarray, "h w"]:
        """See `Shape.mask`."""
        y_scale, x_scale = (side / self.frame if self.frame else 1.0 for side in size)
        y0, y1 = round(self.y * y_scale), round((self.y + self.h) * y_scale)
        x0, x1 = round(self.x * x_scale), round((self.x + self.w) * x_scale)
        box = (self.x, self.y, self.w, self.h)
        if y0 == y1 or x0 == x1:
            raise UserError(f"the box {box} is less than one pixel wide or high")
        mask = np.zeros(size, bool)
        mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
        if not mask.any():
            raise UserError(f"the box {box} lies outside the image {size}")
        return mask


def regions_from_boxes(images: Path, boxes: Path, frame: int | None) -> list[Region]:
    """The regions in the order of the file's rows; the boxes of one image are numbered from 0.

    Raises:
      UserError: the folder or the file cannot be used; one line for each of the first wrong rows.
    """
    files = {path.name: path for path in list_images(images)}
    rows = _read_rows(boxes, frame)
    regions: list[Region] = []
    problems, last_number = [], dict[str, int]()
    for line, row in rows:
        problem, box = _parse_box(row, frame)
        if not problem and row["image"] not in files:
            problem = f"{row['image']} is not in {images}"
        if problem:
            problems.append(f"{boxes} line {line}: {problem}")
            continue
        number = last_number[row["image"]] = last_number.get(row["image"], -1) + 1
        regions.append(Region(row["image"], number, files[row["image"]], box))
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        rest = [f"and {more} more rows"] if more > 0 else []
        raise UserError(
            "\n  ".join(["The boxes cannot be used:", *problems[:_MAX_PROBLEMS], *rest])
        )
    if not regions:
        raise UserError(f"{boxes} has no box, only column names")
    return regions


def _parse_box(row: dict[str, str], frame: int | None) -> tuple[str, Box]:
    """What is wrong with a row, or '', and its box."""
    try:
        # Python also reads 1_0 as a number.
        x, y, w, h = (float(row[key].replace("_", "?")) for key in "xywh")
    except (AttributeError, ValueError):
        x = y = w = h = math.nan
    box = Box(x, y, w, h, frame)
    if None in row:
        return "has more cells than the first line has columns", box
    if not all(abs(value) < _MAX_SIDE for value in (x, y, w, h)):
        return f"x, y, w, h must be numbers under {_MAX_SIDE:,}", box
    if w <= 0 or h <= 0:
        return f"the box has a width of {w:g} and a height of {h:g}; both must be above 0", box
    return "", box


def _read_rows(boxes: Path, frame: int | None) -> list[tuple[int, dict[str, str]]]:
    """(number of its line, column → cell) of each row."""
    reader = csv.DictReader(io.StringIO(_read_text(boxes), newline=""), strict=True)
    rows, last = [], 1  # the line that was read last
    try:
        columns = list(reader.fieldnames or ())
        for row in reader:
            if any("\n" in str(cell) or "\r" in str(cell) for cell in row.values()):
                raise csv.Error("a cell holds a line break")
            last = reader.line_num
            rows.append((last, row))
    except csv.Error as error:
        raise UserError(
            f"{boxes} line {last + 1}: a quotation mark is not closed in its line ({error}); delete it"
        ) from error
    if not set(_COLUMNS) <= set(columns):
        separator = next((s for s in (";", "\t") if columns and s in columns[0]), None)
        hint = (
            f"; its cells are separated by {separator!r}; save it with commas" if separator else ""
        )
        raise UserError(f"{boxes} needs the columns {', '.join(_COLUMNS)}; it has {columns}{hint}")
    if twice := [name for name in _COLUMNS if columns.count(name) > 1]:
        raise UserError(f"{boxes} has the column {twice[0]} twice")
    if frame is None and "prior_map_iou" in columns:
        raise UserError(
            f"{boxes} is the boxes.csv of a run, whose boxes are in NIH's frame; add --frame=1024"
        )
    return rows


def _read_text(boxes: Path) -> str:
    if not boxes.is_file():
        raise UserError(f"--boxes={boxes} is not a file")
    try:
        text = boxes.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--boxes={boxes} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{boxes} is not in UTF-8; save it as 'CSV UTF-8'") from error
    if "\0" in text:
        raise UserError(f"{boxes} is not in UTF-8 (perhaps in UTF-16); save it as 'CSV UTF-8'")
    if not text.strip():
        raise UserError(f"{boxes} is empty; it needs the columns {', '.join(_COLUMNS)}")
    return text
