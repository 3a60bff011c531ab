"""Grad-CAM, and the way from a map to a region of interest.

On the device: `class_maps` (Grad-CAM by `jax.grad` of the classifier head) and the rule which finding's
map marks the region. On the host: `regions`, the one function from a map to components, used for the
radiomics ROI, for predicted boxes and in every evaluation alike.

Axes: b batch · u v map cells · k channels · c findings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

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
    return jnp.einsum("buvk,cbk->bcuv", feature_map, weights)


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
    labels, _ = ndimage.label((heat - low) / (high - low) > threshold)
    peak = int(labels.flat[int(heat.argmax())])
    rows, columns = ndimage.find_objects(labels, max_label=peak)[peak - 1]
    if min(rows.stop - rows.start, columns.stop - columns.start) < MIN_SIDE:
        return _whole(size)
    return Regions(labels, peak, False)


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


def _whole(size: int) -> Regions:
    labels = np.zeros((size, size), np.int32)
    labels[1:-1, 1:-1] = 1
    return Regions(labels, 1, True)
