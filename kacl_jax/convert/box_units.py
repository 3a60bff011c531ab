"""Boxes in any unit → pixels of their image, and what shows that the unit is another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kacl_jax.convert.checked_rows import Box, Collection
from kacl_jax.data.problems import Problems
from kacl_jax.data.tables import NIH_SIDE
from kacl_jax.images.reader import BrokenImage, read_size

UNITS = ("pixels", "fractions", "nih")
_ROUNDING = 0.5  # pixels that a box may end beyond its image, because a program has rounded it
_DIGITS = 4  # after the decimal point, in annotations.csv


class RawBox(NamedTuple):
    """A box as a source writes it. corners: x0, y0, x1, y1 in the source's unit. where: its place in the file.

    claimed: (width, height) that the source gives for the image, or None.
    """

    image: str
    finding: str
    corners: tuple[float, float, float, float]
    where: str
    claimed: tuple[int, int] | None = None


def add_boxes(
    raw: Sequence[RawBox], collection: Collection, unit: str, file: str, problems: Problems
) -> None:
    """Adds the boxes to the collection, or Problems."""
    inside: set[Box] = set()
    beyond: list[str] = []
    for box, size in _with_sizes(raw, collection, file, problems):
        x0, y0, x1, y1 = _in_pixels(box.corners, size, unit)
        width, height = size
        where = f"{box.where} ({x0:.7g}, {y0:.7g}) to ({x1:.7g}, {y1:.7g}) of {width} x {height}"
        if min(x0, y0) < -_ROUNDING or max(x1 - width, y1 - height) > _ROUNDING:
            beyond.append(where)
            continue
        cut = _cut(box, (x0, y0, x1, y1), size, collection)
        if min(cut.w, cut.h) < 1:
            fix = f"give it in {unit} (for a table, --box_unit names the unit), or delete it"
            problems.add(file, "has a box that is less than one pixel wide or high", fix, where)
        elif cut in inside:
            problems.add(file, "has a box twice", "delete one of the two", where)
        else:
            inside.add(cut)
            collection.boxes.append(cut)
    if beyond:
        what, fix = _why_beyond(raw, len(inside), len(beyond))
        for where in beyond:
            problems.add(file, what, fix, where)


def _with_sizes(
    raw: Sequence[RawBox], collection: Collection, file: str, problems: Problems
) -> list[tuple[RawBox, tuple[int, int]]]:
    """Each box with the (width, height) of its image's file; boxes of a file without a size become Problems."""
    sizes: dict[str, tuple[int, int] | None] = {}
    known = []
    for box in raw:
        if box.image not in sizes:
            sizes[box.image] = None
            try:
                size = read_size(collection.images[box.image].source)
            except BrokenImage as error:
                fix = "copy the file again, or delete its rows"
                problems.add(file, "has a box of a file that cannot be read", fix, str(error))
                continue
            if box.claimed not in (None, size):
                fix = "use the files for which the boxes were drawn"
                example = f"{box.image}: {box.claimed} and {size}"
                what = "gives an image another width and height than its file has"
                problems.add(file, what, fix, example)
                continue
            sizes[box.image] = size
        size_or_none = sizes[box.image]
        if size_or_none is not None:
            known.append((box, size_or_none))
    return known


def _in_pixels(
    corners: tuple[float, float, float, float], size: tuple[int, int], unit: str
) -> tuple[float, ...]:
    side = {"pixels": None, "fractions": 1, "nih": NIH_SIDE}[unit]
    return tuple(
        corner if side is None else corner * size[k % 2] / side for k, corner in enumerate(corners)
    )


def _cut(
    box: RawBox, corners: tuple[float, ...], size: tuple[int, int], collection: Collection
) -> Box:
    """The box, rounded to _DIGITS; what lies up to _ROUNDING beyond the image is cut off."""
    sides = (*size, *size)
    x0, y0, x1, y1 = (
        min(max(round(corner, _DIGITS), 0.0), float(side))
        for corner, side in zip(corners, sides, strict=True)
    )
    if any(abs(a - b) > 10**-_DIGITS for a, b in zip((x0, y0, x1, y1), corners, strict=True)):
        collection.drop("parts of boxes, under 1 px, that lay beyond their image", box.where)
    return Box(box.image, box.finding, x0, y0, round(x1 - x0, _DIGITS), round(y1 - y0, _DIGITS))


def _why_beyond(raw: Sequence[RawBox], inside: int, beyond: int) -> tuple[str, str]:
    """(what is wrong, the fix) of boxes that end beyond their images."""
    of_all = f"{beyond} of {inside + beyond} boxes lie partly outside their image"
    # Corners that were read as width and height: x1 is then x0 + the true x1.
    corners = [(x1 - x0 > x0 and y1 - y0 > y0) for x0, y0, x1, y1 in (box.corners for box in raw)]
    if sum(corners) >= 0.9 * len(raw) > 1:
        what = f"{of_all}, and nearly all have w > x and h > y, as if w and h were the lower right corner"
        return (
            what,
            "if they are, name these columns as x0=, y0=, x1= and y1=; else correct the boxes",
        )
    if inside:
        fix = "give all boxes in one unit (for a table, --box_unit names it), and correct those that are wrong"
        return f"{of_all}, so that they may be in another unit than the others", fix
    return (
        of_all,
        "use the files for which they were drawn, or for a table name the unit by --box_unit",
    )
