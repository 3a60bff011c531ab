"""An X-ray with its map, region and boxes as SVG: the pixels are embedded once, and the lines on them stay sharp."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from markupsafe import Markup

SIDE = 400  # px of an embedded X-ray
_HEAT_SIDE = 48
_HEAT_START, _MAX_OPACITY = (
    0.15,
    0.6,
)  # below this share of the range the map is invisible; opacity at its maximum


def panels(
    xray: np.ndarray,
    cam: np.ndarray,
    mask: np.ndarray,
    *,
    relu: bool,
    predicted: np.ndarray,
    truth: np.ndarray,
    key: str,
    alt: str,
) -> Markup:
    """Two panels: the X-ray with the truth boxes, and the same under its map, with the region and the predicted box.

    Args:
      xray: uint8 [h w], `SIDE` px. cam: float [u v], raw. mask: bool [h w] of any size.
      relu: as in `regions.threshold_map`.
      predicted, truth: boxes (x0, y0, x1, y1) as fractions of the image: float [4] and [m 4].
      key: an id that is unique on the page; letters, digits and '-'.
    """
    xray_layer = Markup('<image id="{}" href="{}" width="{}" height="{}"/>').format(
        key, data_uri(xray, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 82]), SIDE, SIDE
    )
    heat_layer = Markup(
        '<image href="{}" width="{}" height="{}" preserveAspectRatio="none"/>'
    ).format(data_uri(heat(cam, relu=relu), ".png", []), SIDE, SIDE)
    region = _with_halo(Markup('d="{}"').format(outline(mask)), "path", "region")
    truth_boxes = Markup("").join(_box(box, "truth") for box in truth)
    xray_copy = Markup('<use href="#{}"/>').format(key)
    return _panel(xray_layer + truth_boxes, f"{alt}: the X-ray") + _panel(
        xray_copy + heat_layer + region + _box(predicted, "predicted") + truth_boxes,
        f"{alt}: under its heat map, with the region and the predicted box",
    )


def _panel(content: Markup, alt: str) -> Markup:
    return Markup(
        '<svg class="xray" viewBox="0 0 {0} {0}" role="img" aria-label="{1}">{2}</svg>'
    ).format(SIDE, alt, content)


def heat(cam: np.ndarray, *, relu: bool) -> np.ndarray:
    """The map as colour and opacity, scaled as `regions.threshold_map` scales it: float [u v] → uint8 BGRA [h w 4]."""
    side = (_HEAT_SIDE, _HEAT_SIDE)
    if not np.isfinite(cam).all():
        return np.zeros((*side, 4), np.uint8)
    level = cv2.resize(cam.astype(np.float32), side, interpolation=cv2.INTER_LINEAR)
    if relu:
        level = np.maximum(level, 0)
    return colours((level - level.min()) / (np.ptp(level) or 1))


def colours(level: np.ndarray) -> np.ndarray:
    """The colour and the opacity of each level: float [h w], 0 … 1 → uint8 BGRA [h w 4]."""
    colour = cv2.applyColorMap(np.rint(255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO)
    opacity = np.clip((level - _HEAT_START) / (1 - _HEAT_START), 0, 1) * _MAX_OPACITY
    return np.dstack([colour, np.rint(255 * opacity).astype(np.uint8)])


def outline(mask: np.ndarray, frame: tuple[float, float] = (SIDE, SIDE)) -> str:
    """The border of a region as an SVG path in a frame of this width and height: bool [h w]."""
    paths = contours(mask, frame)
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in path) + "Z" for path in paths)


def contours(mask: np.ndarray, frame: tuple[float, float]) -> list[np.ndarray]:
    """The closed lines around a region, bool [h w], through the middle of its outermost cells: (x, y), float [n 2]."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array(frame) / np.array([mask.shape[1], mask.shape[0]])
    return [(contour[:, 0] + 0.5) * scale for contour in found]


def _box(box: np.ndarray, style: str) -> Markup:
    x0, y0, x1, y1 = (float(v) * SIDE for v in box)
    geometry = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
    return _with_halo(Markup(geometry), "rect", style)


def _with_halo(geometry: Markup, shape: str, style: str) -> Markup:
    """A bright line over a dark one, so that it is visible both on lung and on bone."""
    return Markup('<{0} class="halo" {1}/><{0} class="{2}" {1}/>').format(shape, geometry, style)


def data_uri(pixels: np.ndarray, ending: str, options: list[int]) -> str:
    """Pixels as a link that holds them. ending: '.jpg' or '.png'. options: of `cv2.imencode`."""
    succeeded, encoded = cv2.imencode(ending, pixels, options)
    if not succeeded:
        raise ValueError(f"pixels {pixels.dtype} {pixels.shape} cannot be encoded as {ending}")
    mime_subtype = {".jpg": "jpeg", ".png": "png"}[ending]
    return f"data:image/{mime_subtype};base64,{base64.b64encode(encoded.tobytes()).decode()}"
