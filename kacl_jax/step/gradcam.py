"""Grad-CAM, and the way from a map to a region of interest.

On the device: `class_maps` (Grad-CAM by `jax.grad` of what follows a feature map) and the rule which finding's
map marks the region. On the host: `regions`, the one function from a map to components, used for the
radiomics ROI, for predicted boxes and in every evaluation alike; `peak_masks` is the same rule inside a
compiled step, which needs no more than the peak's component.

Axes: b batch · u v map cells · k channels · c findings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

# A smaller region has no texture: pyradiomics refuses a point and a line.
MIN_SIDE = 3


def class_maps(
    classify: Callable[[jax.Array], jax.Array], feature_map: jax.Array, n_findings: int
) -> jax.Array:
    """Grad-CAM of every finding at a given feature map (Selvaraju et al. 2017, eq. 1 and 2, no ReLU).

    M_c = Σ_k A_k · ∂logit_c/∂(mean A_k). Only the head is differentiated: no second pass through the
    encoder. For a head that is linear in the pooled map this is the CAM of Zhou et al. 2016.

    Args:
      classify: the head, float32 [b u v k] → logits [b c]; rows must not influence each other.
      feature_map: float32 [b u v k].
      n_findings: c.

    Returns:
      float32 [b c u v], raw: signed, not scaled.
    """

    def channel_weights(finding: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda a: (classify(a) * finding).sum())(feature_map)
        return gradient.sum((1, 2))

    weights = jax.vmap(channel_weights)(jnp.eye(n_findings, dtype=feature_map.dtype))
    return jnp.einsum("buvk,cbk->bcuv", feature_map, weights, precision="highest")


def map_of(
    classify: Callable[[jax.Array], jax.Array], feature_map: jax.Array, finding: jax.Array
) -> jax.Array:
    """`class_maps` of one finding per image, for a head too dear to be differentiated for every finding.

    finding: int32 [b]; the rest as in `class_maps`. Returns float32 [b u v].
    """

    def logits(a: jax.Array) -> jax.Array:
        return jnp.take_along_axis(classify(a), finding[:, None], axis=1).sum()

    weights = jax.grad(logits)(feature_map).sum((1, 2))
    return jnp.einsum("buvk,bk->buv", feature_map, weights, precision="highest")


def marked_finding(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The finding whose map marks the region in training: the positive one with the highest logit.

    Without a positive label it is the arg-max of all logits. float [b c], [b c] → int32 [b].
    """
    among = jnp.where((labels > 0).any(1, keepdims=True), labels > 0, True)
    return jnp.argmax(jnp.where(among, logits, -jnp.inf), axis=1).astype(jnp.int32)


class Regions(NamedTuple):
    """The components of a thresholded map.

    labels: int32 [size size], 4-connected components counted from 1; 0 is outside.
    peak: label of the component that holds the map's maximum.
    fallback: True where the map could not mark a region and the whole image stands in.
    """

    labels: np.ndarray
    peak: int
    fallback: bool

    @property
    def mask(self) -> np.ndarray:
        """bool [size size]: the component that holds the peak; never empty."""
        return self.labels == self.peak


def regions(cam: np.ndarray, *, size: int, relu: bool, threshold: float) -> Regions:
    """Map → components: upsample bilinearly, ReLU, min-max to [0, 1], `> threshold`, components.

    A map that is flat, not finite, or whose peak component is under 3×3 px gives the whole image less a
    one-pixel rim, with `fallback` True: the region is never empty and never NaN.

    Args:
      cam: float [u v], raw (already centred if that is wanted).
      size: side of the square image in px, > 2.
      relu: drop negative evidence first.
      threshold: in [0, 1).
    """
    if not np.isfinite(cam).all():
        return _whole(size)
    heat = cv2.resize(cam.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    if relu:
        heat = np.maximum(heat, 0.0)
    low, high = float(heat.min()), float(heat.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return _whole(size)
    hot = (heat - low) / (high - low) > threshold
    _, labels = cv2.connectedComponents(hot.view(np.uint8), connectivity=4)
    found = Regions(labels, int(labels.flat[int(heat.argmax())]), False)
    mask = found.mask
    if min(mask.any(axis).sum() for axis in (0, 1)) < MIN_SIDE:  # it is connected: no gaps to count
        return _whole(size)
    return found


def peak_masks(
    cam: jax.Array, *, size: int, relu: bool, threshold: float
) -> tuple[jax.Array, jax.Array]:
    """`regions(…).mask` and `.fallback` of each map, on the device.

    float32 [b u v] → (bool [b size size], bool [b]). Arguments as in `regions`.
    """
    finite = jnp.isfinite(cam).all((1, 2))
    cam = jnp.where(finite[:, None, None], cam, 0)
    rows, columns = _upsampling(cam.shape[1], size), _upsampling(cam.shape[2], size)
    heat = jnp.einsum("yu,buv,xv->byx", rows, cam, columns, precision="highest")
    if relu:
        heat = jnp.maximum(heat, 0.0)
    low, high = heat.min((1, 2)), heat.max((1, 2))
    marked = finite & (high - low > 1e-6 * jnp.maximum(jnp.abs(low), jnp.abs(high)))
    scale = jnp.where(marked, high - low, 1)[:, None, None]
    hot = (heat - low[:, None, None]) / scale > threshold
    peak = jnp.argmax(heat.reshape(len(cam), -1), axis=1)[:, None, None]
    part = _component(hot, jnp.arange(size * size).reshape(size, size) == peak)
    height, width = _extent(part.any(2)), _extent(part.any(1))
    marked &= jnp.minimum(height, width) >= MIN_SIDE
    whole = jnp.pad(jnp.ones((size - 2, size - 2), bool), 1)
    return jnp.where(marked[:, None, None], part, whole), ~marked


def box_masks(boxes: jax.Array, size: int) -> jax.Array:
    """`box_mask` of each box, on the device: float32 [b 4] → bool [b size size]."""
    x0, x1 = _intervals(boxes[:, 0] * size, boxes[:, 2] * size, size)
    y0, y1 = _intervals(boxes[:, 1] * size, boxes[:, 3] * size, size)
    place = jnp.arange(size)
    columns = (place >= x0[:, None]) & (place < x1[:, None])
    rows = (place >= y0[:, None]) & (place < y1[:, None])
    return rows[:, :, None] & columns[:, None, :]


def around(masks: jax.Array) -> jax.Array:
    """The box around each non-empty mask, on the device: bool [b h w] → bool [b h w]."""

    def between(flags: jax.Array) -> jax.Array:
        ends = [jax.lax.cummax(flags.astype(jnp.int8), 1, reverse=back) for back in (False, True)]
        return (ends[0] & ends[1]).astype(bool)

    return between(masks.any(2))[:, :, None] & between(masks.any(1))[:, None, :]


def mask_box(mask: np.ndarray) -> np.ndarray:
    """The box of a non-empty mask: bool [h w] → float32 (x0, y0, x1, y1), fractions, half-open."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    h, w = mask.shape
    return np.array([xs[0] / w, ys[0] / h, (xs[-1] + 1) / w, (ys[-1] + 1) / h], np.float32)


def box_mask(box: np.ndarray, size: int) -> np.ndarray:
    """The pixels of a box: rows and columns from int(round(·)), at least 3×3, inside the image.

    float (x0, y0, x1, y1) fractions → bool [size size].
    """
    mask = np.zeros((size, size), bool)
    x0, x1 = _interval(box[0] * size, box[2] * size, size)
    y0, y1 = _interval(box[1] * size, box[3] * size, size)
    mask[y0:y1, x0:x1] = True
    return mask


def _interval(low: float, high: float, size: int) -> tuple[int, int]:
    start, stop = round(float(low)), round(float(high))
    if stop - start < MIN_SIDE:
        start = round((low + high - MIN_SIDE) / 2)
        stop = start + MIN_SIDE
    start = min(max(start, 0), size - MIN_SIDE)
    return start, max(min(stop, size), start + MIN_SIDE)


def _intervals(low: jax.Array, high: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    start, stop = jnp.round(low), jnp.round(high)
    small = stop - start < MIN_SIDE
    start = jnp.where(small, jnp.round((low + high - MIN_SIDE) / 2), start)
    stop = jnp.where(small, start + MIN_SIDE, stop)
    start = jnp.clip(start, 0, size - MIN_SIDE)
    return start, jnp.maximum(jnp.minimum(stop, size), start + MIN_SIDE)


def _upsampling(n: int, size: int) -> np.ndarray:
    """Bilinear with half-pixel centres, as OpenCV's INTER_LINEAR: float32 [size n]."""
    place = np.clip((np.arange(size) + 0.5) * (n / size) - 0.5, 0, n - 1)
    first = np.minimum(place.astype(int), max(n - 2, 0))
    weight = (place - first).astype(np.float32)
    matrix = np.zeros((size, n), np.float32)
    matrix[np.arange(size), first] = 1 - weight
    matrix[np.arange(size), np.minimum(first + 1, n - 1)] += weight
    return matrix


def _component(hot: jax.Array, seed: jax.Array) -> jax.Array:
    """The 4-connected component of `hot` [b y x] that holds the seed, by filling rows and columns in turn."""

    def fill(reached: jax.Array, axis: int, reverse: bool) -> jax.Array:
        def then(
            first: tuple[jax.Array, ...], second: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, ...]:
            return first[0] & second[0], second[1] | (second[0] & first[1])

        return jax.lax.associative_scan(then, (hot, reached), reverse=reverse, axis=axis)[1]

    def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        before, _ = state
        reached = before
        for axis in (1, 2):
            for reverse in (False, True):
                reached = fill(reached, axis, reverse)
        return reached, (reached != before).any()

    start = hot & seed
    # The flag is made of the data, so that it lives on the same devices.
    return jax.lax.while_loop(lambda state: state[1], turn, (start, start.any()))[0]


def _extent(flags: jax.Array) -> jax.Array:
    """From the first to the last set flag: bool [b n] → int32 [b]."""
    place = jnp.arange(flags.shape[1], dtype=jnp.int32)
    return jnp.where(flags, place, -1).max(1) - jnp.where(flags, place, flags.shape[1]).min(1) + 1


def _whole(size: int) -> Regions:
    labels = np.zeros((size, size), np.int32)
    labels[1:-1, 1:-1] = 1
    return Regions(labels, 1, True)
