"""Finds boxes that are not x, y, w, h in NIH's frame: one by one, and by what all of them have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np

from kacl_jax.data.problems import Problems
from kacl_jax.data.tables import NIH_SIDE, Tables

MIN_BOX_SIDE = 8  # pixels of the frame; NIH's smallest box has 21, a cell of prior_map's grid 4
_MIN_BOXES = 8  # fewer may share a shape by chance
_FRAME = f"x, y, w, h in NIH's {NIH_SIDE} x {NIH_SIDE} frame, whatever the file's size"

# Of NIH's 984 boxes the share that ends at or before these pixels of the frame, by axis.
_ENDS = (0, 256, 512, 768, 820, 900, 1000, NIH_SIDE)
_SHARE_X = (0, 0.034, 0.387, 0.499, 0.636, 0.897, 0.997, 1)
_SHARE_Y = (0, 0.022, 0.176, 0.737, 0.866, 0.965, 0.995, 1)
_MAX_CHANCE = 0.01  # that boxes in NIH's frame would all lie within their files' pixels


def check_nih_boxes(tables: Tables, problems: Problems) -> None:
    """What NIH's box file alone can show."""
    if _are_corners(tables):
        _report_corners(tables, f"give {_FRAME}", problems)
        return
    for image, finding, (x, y, w, h) in _all_boxes(tables):
        example = f"{image} {finding} ({x:g}, {y:g}, {w:g}, {h:g})"
        if min(x, y) < 0 or max(x + w, y + h) > NIH_SIDE:
            problems.add(tables.box_file, "a box leaves the image", f"give {_FRAME}", example)
        elif min(w, h) < MIN_BOX_SIDE:
            fix = f"give {_FRAME}, not in fractions, or delete it"
            problems.add(tables.box_file, f"a box has a side under {MIN_BOX_SIDE} px", fix, example)


def check_own_boxes(
    tables: Tables, sizes: Mapping[str, tuple[int, int]], problems: Problems
) -> None:
    """Boxes in pixels of their own files. sizes: image → (width, height); a box of another image is not judged."""
    fix = "give x, y, w, h in pixels of the image as it is seen"
    if _are_corners(tables):
        _report_corners(tables, fix, problems)
        return
    for image, finding, (x, y, w, h) in _all_boxes(tables):
        width, height = sizes.get(image, (math.inf, math.inf))
        example = f"{image} {finding} ({x:g}, {y:g}, {w:g}, {h:g})"
        if min(x, y) < 0 or x + w > width or y + h > height:
            what = "a box leaves its image"
            problems.add(tables.box_file, what, fix, f"{example} in {width} x {height} px")
        elif min(w, h) < 1:
            problems.add(
                tables.box_file, "a box has a side under 1 px", f"{fix}, not in fractions", example
            )


def _all_boxes(tables: Tables) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    for (image, finding), boxes in tables.boxes.items():
        for xywh in boxes:
            yield image, finding, xywh


def _are_corners(tables: Tables) -> bool:
    boxes = np.array([xywh for *_, xywh in _all_boxes(tables)], np.float64).reshape(-1, 4)
    return len(boxes) >= _MIN_BOXES and bool(np.mean((boxes[:, 2:] > boxes[:, :2]).all(1)) >= 0.9)


def _report_corners(tables: Tables, fix: str, problems: Problems) -> None:
    what = "nearly all boxes have w > x and h > y, as if w and h were the right and lower edge"
    fix = f"{fix}; w is the right edge less x, h the lower edge less y"
    problems.add(tables.box_file, what, fix, _some(_all_boxes(tables)))


def check_box_frame(
    tables: Tables, sizes: Mapping[str, tuple[int, int]], problems: Problems
) -> None:
    """Reports boxes that are in pixels of their own files, where these are smaller than NIH's frame.

    sizes: image → (width, height) of its file. In NIH's frame a box ends within so many pixels as often as NIH's own
    boxes do. The product over the boxes is the chance that all do; one in twenty may be an outlier.
    """
    smaller = [box for box in _all_boxes(tables) if min(sizes.get(box[0], (NIH_SIDE,))) < NIH_SIDE]
    outside = 0
    chance = 1.0
    for image, _, (x, y, w, h) in smaller:
        width, height = sizes[image]
        if x + w > width or y + h > height:
            outside += 1
        else:
            chance *= min(np.interp(width, _ENDS, _SHARE_X), np.interp(height, _ENDS, _SHARE_Y))
    if outside > len(smaller) / 20:
        return
    chance *= math.comb(len(smaller), outside)
    if chance < _MAX_CHANCE:
        what = (
            f"of {len(smaller)} boxes on files under {NIH_SIDE} px {len(smaller) - outside} end within the file, "
            "as if they were in its pixels"
        )
        fix = f"give {_FRAME}: multiply x and w by {NIH_SIDE} / the file's width, y and h by {NIH_SIDE} / its height"
        problems.add(tables.box_file, what, fix, _some(smaller))


def _some(boxes: Iterable[tuple[str, str, tuple[float, ...]]]) -> str:
    return ", ".join(
        "{} {} ({:g}, {:g}, {:g}, {:g})".format(image, finding, *xywh)
        for image, finding, xywh in islice(boxes, 2)
    )
