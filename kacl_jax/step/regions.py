"""The region rule: from a map, or a truth box, to the pixels that radiomics measures and the box that is scored.

Each part stands twice, side by side: for one image in numpy, as the host runs it, and for a batch in jax, as a compiled
step runs it (…_on_device). One table of tests holds them equal.

    threshold_map   map → the components above the threshold, and which of them holds the peak
    box_mask        box → its pixels; union_mask: boxes → the pixels of any of them
    bounding_box    region → the box around it
    RegionRule      which of these is an image's region: Grad-CAM's, the truth boxes, or a control

Axes: b batch · h w pixels · u v map cells · c findings · k boxes of a finding.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from kacl_jax.step.peak_component import peak_component

# A smaller region has no texture: pyradiomics refuses a point and a line.
MIN_SIDE = 3
ORIGINS = ("truth", "cam", "fallback", "random", "whole")

Source = Literal["cam", "random", "whole"]
Shape = Literal["mask", "box"]


@dataclasses.dataclass(frozen=True)
class RegionRule:
    """How a training image's region of interest is marked.

    source: 'cam', or a control: 'random' (a rectangle with the area and aspect of some CAM region of the rows at
      hand, anywhere) and 'whole' (the image less a one-pixel rim).
    truth_boxes: an annotated image's region is the union of one finding's truth boxes instead; never under 'random'.
    relu, threshold: see `threshold_map`.
    size: side of the image in px.
    seed: of the random rectangles.
    shape: a CAM region is its 'mask', or the 'box' around it.
    """

    source: Source
    truth_boxes: bool
    relu: bool
    threshold: float
    size: int
    seed: int
    shape: Shape = "mask"

    def mark(
        self,
        cam: Float32[np.ndarray, "b u v"],
        box_finding: Int32[np.ndarray, "b"],
        boxes: Float32[np.ndarray, "b c k 4"],
        image_id: Int32[np.ndarray, "b"],
        step: int,
    ) -> tuple[Bool[np.ndarray, "b {self.size} {self.size}"], dict[str, int]]:
        """The masks of one batch.

        Args:
          box_finding: whose truth boxes mark the region; −1 without any. boxes: empty in unused places.
          step: the step that made the maps.

        Returns:
          (the masks, how many regions came from where, by ORIGINS).
        """
        masks = np.zeros((len(cam), self.size, self.size), bool)
        origin = dict.fromkeys(ORIGINS, 0)
        for row in range(len(cam)):
            if self.truth_boxes and self.source != "random" and box_finding[row] >= 0:
                masks[row] = union_mask(boxes[row, box_finding[row]], self.size)
                origin["truth"] += 1
            elif self.source == "whole":
                masks[row, 1:-1, 1:-1] = True
                origin["whole"] += 1
            elif self.source == "random":
                masks[row] = self._random_rectangle(cam, int(image_id[row]), step)
                origin["random"] += 1
            else:
                masks[row], fallback = self.region(cam[row])
                origin["fallback" if fallback else "cam"] += 1
        return masks, origin

    def mark_on_device(
        self,
        cam: Float32[Array, "b u v"],
        box_finding: Int32[Array, "b"],
        boxes: Float32[Array, "b c k 4"],
    ) -> tuple[Bool[Array, "b {self.size} {self.size}"], Int32[Array, "b"]]:
        """`mark` inside a compiled step, for every source but 'random', which only the host can draw.

        Returns:
          (the masks, where each region came from: places in ORIGINS).
        """
        if self.source == "cam":
            masks, fallback = threshold_maps_on_device(
                cam, size=self.size, relu=self.relu, threshold=self.threshold
            )
            if self.shape == "box":
                masks = bounding_box_masks_on_device(masks)
            origin = jnp.where(fallback, ORIGINS.index("fallback"), ORIGINS.index("cam"))
        else:
            masks = jnp.broadcast_to(
                _whole_image_on_device(self.size), (len(cam), self.size, self.size)
            )
            origin = jnp.full(len(cam), ORIGINS.index("whole"))
        if not self.truth_boxes:
            return masks, origin
        finding = jnp.maximum(box_finding, 0)[:, None, None, None]
        of_finding = jnp.take_along_axis(boxes, finding, axis=1)[:, 0]
        truth = union_masks_on_device(of_finding, self.size)
        annotated = box_finding >= 0
        origin = jnp.where(annotated, ORIGINS.index("truth"), origin)
        return jnp.where(annotated[:, None, None], truth, masks), origin

    def region(
        self, cam: Float[np.ndarray, "u v"]
    ) -> tuple[Bool[np.ndarray, "{self.size} {self.size}"], bool]:
        """The CAM region of one map, and whether the whole image stands in for it."""
        components = threshold_map(cam, size=self.size, relu=self.relu, threshold=self.threshold)
        mask = components.mask
        if self.shape == "box":
            mask = box_mask(bounding_box(mask), self.size)
        return mask, components.fallback

    def _random_rectangle(
        self, cam: Float32[np.ndarray, "b u v"], image_id: int, step: int
    ) -> Bool[np.ndarray, "{self.size} {self.size}"]:
        """A rectangle with the area and aspect of a random CAM region of the batch, at a uniform random place."""
        random = np.random.default_rng((self.seed, image_id, step))
        mask, _ = self.region(cam[random.integers(len(cam))])
        x0, y0, x1, y1 = bounding_box(mask)
        aspect = (x1 - x0) / (y1 - y0)
        fraction = mask.mean()
        width = min(np.sqrt(fraction * aspect), 1.0)
        height = min(np.sqrt(fraction / aspect), 1.0)
        left, top = random.uniform(size=2) * (1 - width, 1 - height)
        return box_mask(np.array([left, top, left + width, top + height]), self.size)


class Components(NamedTuple):
    """The components of a thresholded map.

    labels: 4-connected components counted from 1; 0 is outside.
    peak: label of the component that holds the map's maximum.
    fallback: True where the map could not mark a region and the whole image stands in.
    """

    labels: Int32[np.ndarray, "h w"]
    peak: int
    fallback: bool

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """The component that holds the peak; never empty."""
        return self.labels == self.peak


def threshold_map(
    cam: Float[np.ndarray, "u v"], *, size: int, relu: bool, threshold: float
) -> Components:
    """Map → components: upsample bilinearly, ReLU, min-max to [0, 1], `> threshold`, components.

    A map that is flat, not finite, or whose peak component is under 3×3 px gives the whole image less a
    one-pixel rim, with `fallback` True: the region is never empty and never NaN.

    Args:
      cam: raw (already centred if that is wanted).
      size: side of the square image in px, > 2.
      relu: drop negative evidence first.
      threshold: in [0, 1).
    """
    if not np.isfinite(cam).all():
        return _whole_image(size)
    heat = cv2.resize(cam.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    if relu:
        heat = np.maximum(heat, 0.0)
    low, high = float(heat.min()), float(heat.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return _whole_image(size)
    hot = (heat - low) / (high - low) > threshold
    _, labels = cv2.connectedComponents(hot.view(np.uint8), connectivity=4)
    components = Components(labels, int(labels.flat[int(heat.argmax())]), False)
    mask = components.mask
    if (
        min(mask.any(axis).sum() for axis in (0, 1)) < MIN_SIDE
    ):  # connected, so these counts are its sides
        return _whole_image(size)
    return components


def threshold_maps_on_device(
    cam: Float32[Array, "b u v"], *, size: int, relu: bool, threshold: float
) -> tuple[Bool[Array, "b {size} {size}"], Bool[Array, "b"]]:
    """`threshold_map(…).mask` and `.fallback` of each map, on the device. Arguments as in `threshold_map`."""
    finite = jnp.isfinite(cam).all((1, 2))
    cam = jnp.where(finite[:, None, None], cam, 0)
    rows, columns = _upsampling(cam.shape[1], size), _upsampling(cam.shape[2], size)
    heat = jnp.einsum("yu,buv,xv->byx", rows, cam, columns, precision="highest")
    if relu:
        heat = jnp.maximum(heat, 0.0)
    low, high = heat.min((1, 2)), heat.max((1, 2))
    usable = finite & (high - low > 1e-6 * jnp.maximum(jnp.abs(low), jnp.abs(high)))
    scale = jnp.where(usable, high - low, 1)[:, None, None]
    hot = (heat - low[:, None, None]) / scale > threshold
    peak = jnp.argmax(heat.reshape(len(cam), -1), axis=1).astype(jnp.int32)
    part = peak_component(hot, peak)
    height, width = _extent_on_device(part.any(2)), _extent_on_device(part.any(1))
    usable &= jnp.minimum(height, width) >= MIN_SIDE
    whole_image = _whole_image_on_device(size)
    return jnp.where(usable[:, None, None], part, whole_image), ~usable


def bounding_box(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "4"]:
    """The box of a non-empty mask: (x0, y0, x1, y1), fractions, half-open."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    h, w = mask.shape
    return np.array([xs[0] / w, ys[0] / h, (xs[-1] + 1) / w, (ys[-1] + 1) / h], np.float32)


def bounding_box_masks_on_device(masks: Bool[Array, "b h w"]) -> Bool[Array, "b h w"]:
    """The box around each non-empty mask, on the device."""

    def fill_between(flags: Bool[Array, "b n"]) -> Bool[Array, "b n"]:
        ends = [jax.lax.cummax(flags.astype(jnp.int8), 1, reverse=back) for back in (False, True)]
        return (ends[0] & ends[1]).astype(bool)

    return fill_between(masks.any(2))[:, :, None] & fill_between(masks.any(1))[:, None, :]


def box_mask(box: Float[np.ndarray, "4"], size: int) -> Bool[np.ndarray, "{size} {size}"]:
    """The pixels of a box (x0, y0, x1, y1) in fractions.

    Rows and columns from int(round(·)), at least 3×3, inside the image.
    """
    mask = np.zeros((size, size), bool)
    x0, x1 = _interval(box[0] * size, box[2] * size, size)
    y0, y1 = _interval(box[1] * size, box[3] * size, size)
    mask[y0:y1, x0:x1] = True
    return mask


def union_mask(boxes: Float[np.ndarray, "k 4"], size: int) -> Bool[np.ndarray, "{size} {size}"]:
    """The pixels of any of the boxes, as `box_mask`; empty boxes have no pixels."""
    is_box = (boxes[:, 2:] > boxes[:, :2]).all(1)
    mask = np.zeros((size, size), bool)
    for box in boxes[is_box]:
        mask |= box_mask(box, size)
    return mask


def box_masks_on_device(
    boxes: Float32[Array, "*shape 4"], size: int
) -> Bool[Array, "*shape {size} {size}"]:
    """`box_mask` of each box, on the device."""
    x0, x1 = _interval_on_device(boxes[..., 0] * size, boxes[..., 2] * size, size)
    y0, y1 = _interval_on_device(boxes[..., 1] * size, boxes[..., 3] * size, size)
    place = jnp.arange(size)
    columns = (place >= x0[..., None]) & (place < x1[..., None])
    rows = (place >= y0[..., None]) & (place < y1[..., None])
    return rows[..., :, None] & columns[..., None, :]


def union_masks_on_device(
    boxes: Float32[Array, "b k 4"], size: int
) -> Bool[Array, "b {size} {size}"]:
    """`union_mask` of each row's boxes, on the device."""
    is_box = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return (box_masks_on_device(boxes, size) & is_box[..., None, None]).any(1)


def _whole_image(size: int) -> Components:
    labels = np.zeros((size, size), np.int32)
    labels[1:-1, 1:-1] = 1
    return Components(labels, 1, True)


def _whole_image_on_device(size: int) -> Array:
    return jnp.pad(jnp.ones((size - 2, size - 2), bool), 1)


def _interval(low: np.floating, high: np.floating, size: int) -> tuple[int, int]:
    start, stop = round(float(low)), round(float(high))
    if stop - start < MIN_SIDE:
        start = round((low + high - MIN_SIDE) / 2)
        stop = start + MIN_SIDE
    start = min(max(start, 0), size - MIN_SIDE)
    return start, max(min(stop, size), start + MIN_SIDE)


def _interval_on_device(low: Array, high: Array, size: int) -> tuple[Array, Array]:
    start, stop = jnp.round(low), jnp.round(high)
    small = stop - start < MIN_SIDE
    start = jnp.where(small, jnp.round((low + high - MIN_SIDE) / 2), start)
    stop = jnp.where(small, start + MIN_SIDE, stop)
    start = jnp.clip(start, 0, size - MIN_SIDE)
    return start, jnp.maximum(jnp.minimum(stop, size), start + MIN_SIDE)


def _upsampling(n: int, size: int) -> Float32[np.ndarray, "{size} {n}"]:
    """Bilinear with half-pixel centres, as OpenCV's INTER_LINEAR."""
    place = np.clip((np.arange(size) + 0.5) * (n / size) - 0.5, 0, n - 1)
    first = np.minimum(place.astype(int), max(n - 2, 0))
    weight = (place - first).astype(np.float32)
    matrix = np.zeros((size, n), np.float32)
    matrix[np.arange(size), first] = 1 - weight
    matrix[np.arange(size), np.minimum(first + 1, n - 1)] += weight
    return matrix


def _extent_on_device(flags: Bool[Array, "b n"]) -> Int32[Array, "b"]:
    """From the first to the last set flag."""
    place = jnp.arange(flags.shape[1], dtype=jnp.int32)
    return jnp.where(flags, place, -1).max(1) - jnp.where(flags, place, flags.shape[1]).min(1) + 1
