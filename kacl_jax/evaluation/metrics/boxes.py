"""Boxes against boxes: overlap, localization accuracy, pointing game, false boxes.

Boxes are float (x0, y0, x1, y1) fractions of the image's side, half-open; all arithmetic on them is
float64.
"""

from __future__ import annotations

import numpy as np

from kacl_jax.evaluation.metrics.bootstrap import RESAMPLES, Table, ratio_tables

T_IOU = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
T_IOBB = (0.1, 0.25, 0.5, 0.75, 0.9)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union, elementwise. Boxes float [... 4] → float64 [...] in [0, 1].

    Raises ValueError on a box that is empty or not finite: it has no overlap to speak of.
    """
    boxes, others, shared = _shared_area(boxes, others)
    return shared / (_area(boxes) + _area(others) - shared)


def iobb(detected: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over the area of the *detected* box (Wang et al. 2017), as `iou`."""
    detected, _, shared = _shared_area(detected, truth)
    return shared / _area(detected)


def inside(point: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Whether points float [... 2] (x, y) lie in boxes float [... 4]: bool [...]; a NaN lies nowhere."""
    point, box = np.asarray(point, np.float64), checked(box)
    return np.asarray(((box[..., :2] <= point) & (point < box[..., 2:])).all(axis=-1))


def localization_tables(
    overlap: np.ndarray,
    finding: np.ndarray,
    patients: np.ndarray,
    *,
    n_findings: int,
    thresholds: tuple[float, ...],
    resamples: int = RESAMPLES,
) -> tuple[Table, ...]:
    """Localization accuracy: the share of a finding's truth boxes with overlap > T, strictly.

    Args: overlap float64 [m], one per truth box (IoU or IoBB; NaN: this box has no detection to be
    judged, it leaves the denominator); finding int [m]; patients int [m].
    Returns: one table per threshold; count n is the number of truth boxes judged.
    """
    judged = np.isfinite(overlap)
    ours = finding[:, None] == np.arange(n_findings)
    hit = (overlap[:, None] > np.asarray(thresholds)) & judged[:, None]
    reasons = [_unjudged(ours[:, i], judged) for i in range(n_findings)]
    return ratio_tables(
        ours[:, :, None] & hit[:, None, :],
        ours & judged[:, None],
        patients,
        reasons,
        resamples,
    )


def localization_differences(
    overlap: np.ndarray,
    other: np.ndarray,
    finding: np.ndarray,
    patients: np.ndarray,
    *,
    n_findings: int,
    thresholds: tuple[float, ...],
    resamples: int = RESAMPLES,
) -> tuple[Table, ...]:
    """Localization accuracy of one detection less that of another of the same truth boxes, in [−1, 1].

    Paired: a box counts where both are finite. overlap, other float64 [m]; the rest as in `localization_tables`.
    """
    judged = np.isfinite(overlap) & np.isfinite(other)
    ours = (finding[:, None] == np.arange(n_findings)) & judged[:, None]
    at = np.asarray(thresholds)
    hit, other_hit = ((values[:, None] > at).astype(np.int8) for values in (overlap, other))
    reasons = [_unjudged(finding == i, judged) for i in range(n_findings)]
    return ratio_tables(
        ours[:, :, None] * (hit - other_hit)[:, None, :], ours, patients, reasons, resamples
    )


def pointing_table(
    hit: np.ndarray,
    finding: np.ndarray,
    patients: np.ndarray,
    *,
    n_findings: int,
    resamples: int = RESAMPLES,
) -> Table:
    """The pointing game: the share of a finding's truth boxes that hold their map's peak.

    Zhang et al. 2016 (Top-down Neural Attention by Excitation Backprop) also forgive a peak 15 px outside; here
    nothing is forgiven: that margin is as wide as half a nodule. Args: hit float [m] of 0 and 1, one per truth box
    (NaN: nothing points, the box leaves the denominator); the rest as in `localization_tables`.
    """
    return localization_tables(
        hit,
        finding,
        patients,
        n_findings=n_findings,
        thresholds=(0.5,),
        resamples=resamples,
    )[0]


def false_box_table(
    false_box: np.ndarray,
    considered: np.ndarray,
    patients: np.ndarray,
    reasons: list[str],
    *,
    resamples: int = RESAMPLES,
) -> Table:
    """AFP: mean number of false boxes per image, over the (image, finding) pairs considered.

    Args: false_box, considered bool [n c]; patients int [n]; reasons, per finding, why it cannot be
    judged at all ('' where it can). Count n is the number of images considered.
    """
    false = (false_box & considered)[:, :, None]
    return ratio_tables(false, considered, patients, reasons, resamples)[0]


def _unjudged(ours: np.ndarray, judged: np.ndarray) -> str:
    if (ours & judged).any():
        return ""
    if ours.any():
        return "no other box of this finding to take the prior from"
    return "no truth box of this finding is scored"


def checked(boxes: np.ndarray) -> np.ndarray:
    """Boxes [... 4] as float64; raises ValueError on one that is empty or not finite."""
    boxes = np.asarray(boxes, np.float64)
    if not ((boxes[..., 2:] > boxes[..., :2]).all() and np.isfinite(boxes).all()):
        raise ValueError("a box is empty or not finite")
    return boxes


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _shared_area(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = checked(a), checked(b)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., 2:], b[..., 2:])
    return a, b, np.clip(high - low, 0, None).prod(axis=-1)
