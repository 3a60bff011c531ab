"""An X-ray under its heat map, with the marked region and its box, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from kacl_jax.report import pictures

if TYPE_CHECKING:
    from kacl_jax.predict.prediction import Prediction

MAX_SIDE = 1024  # px
_DARK, _REGION, _BOX = (0, 0, 0), (255, 210, 74), (255, 255, 255)  # RGB, as in report/'s style.css


def draw(prediction: Prediction, finding: str) -> Image.Image:
    """The X-ray under a finding's heat map, with the outline of the marked region (yellow) and its box (white).

    Returns:
      RGB. The longer side has at most `MAX_SIDE` px, a smaller X-ray keeps its size, and both keep their aspect ratio.

    Raises:
      KeyError: the network does not know the finding.
    """
    width, height = size = _drawn_size(prediction.pixels)
    xray = cv2.resize(prediction.pixels, size, interpolation=cv2.INTER_AREA)
    level = cv2.resize(prediction.heat_map(finding), size, interpolation=cv2.INTER_AREA)
    colours = pictures.colours(level)
    opacity = colours[..., 3:] / 255
    mixed = xray[..., None] * (1 - opacity) + colours[..., 2::-1] * opacity
    canvas = np.ascontiguousarray(np.rint(mixed).astype(np.uint8))
    mask, _ = prediction.region(finding)
    _draw_lines(canvas, [line - 0.5 for line in pictures.contours(mask, size)], _REGION)
    box = prediction.box(finding)
    across, down = width / prediction.pixels.shape[1], height / prediction.pixels.shape[0]
    x0, x1 = box.x * across, (box.x + box.w) * across - 1
    y0, y1 = box.y * down, (box.y + box.h) * down - 1
    _draw_lines(canvas, [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])], _BOX)
    return Image.fromarray(canvas)


def _drawn_size(pixels: np.ndarray) -> tuple[int, int]:
    """Width and height."""
    height, width = pixels.shape
    scale = min(1.0, MAX_SIDE / max(pixels.shape))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _draw_lines(
    canvas: np.ndarray, lines: Sequence[np.ndarray], colour: tuple[int, int, int]
) -> None:
    """Closed lines through (x, y), float [n 2]: a bright one over a dark one, visible both on lung and on bone."""
    thickness = max(1, round(max(canvas.shape) / 500))
    points = [np.rint(line).astype(np.int32) for line in lines]
    cv2.polylines(canvas, points, True, _DARK, thickness + 2)
    cv2.polylines(canvas, points, True, colour, thickness)
