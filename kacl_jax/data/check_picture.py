"""check.png: twelve images of a root with their boxes, so that a person sees at once whether these fit."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from kacl_jax.data.tables import CHECK_SIDE, NIH_SIDE, RootCheck, Tables

CHECK_FILE = "check.png"
_COLUMNS, _ROWS = 4, 3
_CAPTION, _GAP = 20, 8  # pixels
_BOX_COLOUR, _TEXT_COLOUR = (60, 190, 255), (235, 235, 235)  # BGR


def choose_sample(tables: Tables, available: Collection[str]) -> frozenset[str]:
    """Up to twelve images: with a box if there are enough, of each finding in turn; the others evenly from all."""
    by_finding: dict[str, list[str]] = {}
    for image, finding in sorted(tables.boxes):
        if image in available:
            by_finding.setdefault(finding, []).append(image)
    chosen: dict[str, None] = {}  # in order
    for turn in range(max(map(len, by_finding.values()), default=0)):
        for images in by_finding.values():
            chosen |= dict.fromkeys(images[turn : turn + 1])
    others = sorted(name for name in tables.rows if name in available and name not in chosen)
    evenly = others[:: max(1, len(others) // (_COLUMNS * _ROWS))]
    return frozenset([*chosen, *evenly][: _COLUMNS * _ROWS])


def draw_check_picture(check: RootCheck) -> np.ndarray | None:
    """uint8 [h w 3] (BGR) of the sample's pictures; None if there is none."""
    tables, pictures = check.tables, check.pictures
    if not pictures:
        return None
    tile_h, tile_w = CHECK_SIDE + _CAPTION + _GAP, CHECK_SIDE + _GAP
    page = np.zeros((_ROWS * tile_h + _GAP, _COLUMNS * tile_w + _GAP, 3), np.uint8)
    boxed = {image for image, _ in tables.boxes}
    for k, name in enumerate(sorted(pictures, key=lambda name: (name not in boxed, name))):
        top, left = _GAP + k // _COLUMNS * tile_h, _GAP + k % _COLUMNS * tile_w
        tile = np.repeat(pictures[name][..., None], 3, -1)
        frame = check.sizes[name] if tables.own_frames else (NIH_SIDE, NIH_SIDE)
        boxes = [
            (finding, xywh)
            for (image, finding), several in tables.boxes.items()
            for xywh in several
            if image == name
        ]
        for finding, xywh in boxes:
            _draw_box(tile, finding, np.array(xywh) * CHECK_SIDE / np.array(2 * frame))
        page[top : top + CHECK_SIDE, left : left + CHECK_SIDE] = tile
        caption = name if boxes else f"{name} (no box)"
        _write(page, caption, (left, top + CHECK_SIDE + 14))
    return page


def _draw_box(tile: np.ndarray, finding: str, xywh: np.ndarray) -> None:
    """xywh: in pixels of the tile."""
    x, y, w, h = xywh.round().astype(int).tolist()
    cv2.rectangle(tile, (x, y), (x + w, y + h), _BOX_COLOUR, 1, cv2.LINE_AA)
    _write(tile, finding, (max(x, 2), max(y - 4, 12)), _BOX_COLOUR)


def _write(
    image: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, int, int] = _TEXT_COLOUR
) -> None:
    plain = text.encode("ascii", "replace").decode()  # the font has no other letters
    cv2.putText(image, plain, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
