"""Comparison of boxes: overlap, localization accuracy, pointing game, false boxes.

Boxes are float (x0, y0, x1, y1), half-open, in fractions of the image's side; all arithmetic on them is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped

from kacl_jax.evaluation.metrics.bootstrap import RESAMPLES, Table, ratio_tables

IOU_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
IOBB_THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)
NO_TRUTH_BOX = "no truth box of this finding is scored"
_NO_PRIOR = "no other box of this finding to take the prior from"


def iou(
    boxes: Float[np.ndarray, "*#shape 4"], others: Float[np.ndarray, "*#shape 4"]
) -> Float64[np.ndarray, "..."]:
    """Intersection over union, elementwise, in [0, 1]; a numpy number for two single boxes.

    Raises ValueError on a box that is empty or not finite, for which overlap is not defined.
    """
    boxes, others, intersection = _intersections(boxes, others)
    return intersection / (_area(boxes) + _area(others) - intersection)


def iobb(
    detected: Float[np.ndarray, "*#shape 4"], truth: Float[np.ndarray, "*#shape 4"]
) -> Float64[np.ndarray, "..."]:
    """Intersection over the area of the *detected* box (Wang et al. 2017), as `iou`."""
    detected, _, intersection = _intersections(detected, truth)
    return intersection / _area(detected)


def point_in_box(
    point: Float[np.ndarray, "*#shape 2"], box: Float[np.ndarray, "*#shape 4"]
) -> Bool[np.ndarray, "..."]:
    """Whether points (x, y) lie in boxes; False for a NaN point."""
    point, box = np.asarray(point, np.float64), validate_boxes(box)
    return np.asarray(((box[..., :2] <= point) & (point < box[..., 2:])).all(axis=-1))


@dataclass(frozen=True, eq=False)
class TruthBoxes:
    """m truth boxes, over which tables are made, and how often their patients are resampled.

    In the pointing game: m pairs of an image and a finding with truth boxes.
    """

    finding: Int[np.ndarray, "m"]
    patients: Int[np.ndarray, "m"]
    n_findings: int
    resamples: int = RESAMPLES


def localization_tables(
    overlap: Float64[np.ndarray, "m"], truth: TruthBoxes, thresholds: Sequence[float]
) -> dict[float, Table]:
    """Localization accuracy: the share of a finding's truth boxes with overlap > T, strictly.

    Args: overlap, one per truth box (IoU or IoBB; a box with NaN has nothing to be compared with and
    leaves the denominator).
    Returns: one table per threshold; count n is the number of truth boxes in the denominator.
    """
    hits = overlap[:, None] > np.asarray(thresholds)
    return dict(zip(thresholds, _mean_tables(hits, np.isfinite(overlap), truth), strict=True))


def localization_differences(
    overlap: Float64[np.ndarray, "m"],
    baseline: Float64[np.ndarray, "m"],
    truth: TruthBoxes,
    thresholds: Sequence[float],
) -> dict[float, Table]:
    """Localization accuracy minus that of a baseline on the same truth boxes, in [−1, 1].

    Paired: a truth box counts where both overlaps are finite.
    """
    hits, baseline_hits = (
        (values[:, None] > np.asarray(thresholds)).astype(np.int8) for values in (overlap, baseline)
    )
    has_both = np.isfinite(overlap) & np.isfinite(baseline)
    return dict(zip(thresholds, _mean_tables(hits - baseline_hits, has_both, truth), strict=True))


def pointing_table(hit: Float[np.ndarray, "m"], truth: TruthBoxes) -> Table:
    """The pointing game: the share of a finding's images with truth boxes whose map's peak lies in any of these boxes.

    As in Zhang et al. 2016 (Top-down Neural Attention by Excitation Backprop) an image counts once, however many boxes
    it has. They also count a peak up to 15 px outside of a box as a hit. Here only a peak inside counts, because that
    margin is as wide as half a nodule.
    Args: hit 0 or 1, one per pair of an image and a finding (a pair with NaN has no map to be compared with and leaves
    the denominator).
    """
    return _mean_tables(hit[:, None] > 0, np.isfinite(hit), truth)[0]


def _mean_tables(
    values: Shaped[np.ndarray, "m t"], is_counted: Bool[np.ndarray, "m"], truth: TruthBoxes
) -> tuple[Table, ...]:
    """The mean over a finding's truth boxes that are counted, one table per t."""
    of_finding = truth.finding[:, None] == np.arange(truth.n_findings)
    counted = of_finding & is_counted[:, None]
    reasons = [
        "" if n_counted else _NO_PRIOR if n_boxes else NO_TRUTH_BOX
        for n_counted, n_boxes in zip(counted.sum(axis=0), of_finding.sum(axis=0), strict=True)
    ]
    numerator = counted[:, :, None] * values[:, None, :]
    return ratio_tables(numerator, counted, truth.patients, reasons, truth.resamples)


def false_box_table(
    false_box: Bool[np.ndarray, "n c"],
    eligible: Bool[np.ndarray, "n c"],
    patients: Int[np.ndarray, "n"],
    reasons: list[str],
    *,
    resamples: int = RESAMPLES,
) -> Table:
    """AFP: mean number of false boxes per image, over the eligible (image, finding) pairs.

    Args: reasons, per finding, why no image is eligible ('' where
    some are). Count n is the number of eligible images.
    """
    counted_false = (false_box & eligible)[:, :, None]
    return ratio_tables(counted_false, eligible, patients, reasons, resamples)[0]


def validate_boxes(boxes: Float[np.ndarray, "*shape 4"]) -> Float64[np.ndarray, "*shape 4"]:
    """Boxes as float64; raises ValueError on one that is empty or not finite."""
    boxes = np.asarray(boxes, np.float64)
    if not ((boxes[..., 2:] > boxes[..., :2]).all() and np.isfinite(boxes).all()):
        raise ValueError("a box is empty or not finite")
    return boxes


def _area(boxes: Float64[np.ndarray, "*shape 4"]) -> Float64[np.ndarray, "..."]:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersections(
    a: Float[np.ndarray, "*#shape 4"], b: Float[np.ndarray, "*#shape 4"]
) -> tuple[
    Float64[np.ndarray, "*#shape 4"], Float64[np.ndarray, "*#shape 4"], Float64[np.ndarray, "..."]
]:
    a, b = validate_boxes(a), validate_boxes(b)
    lower = np.maximum(a[..., :2], b[..., :2])
    upper = np.minimum(a[..., 2:], b[..., 2:])
    return a, b, np.clip(upper - lower, 0, None).prod(axis=-1)
