"""The points of the charts' lines. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

Curve = list[tuple[float, float]]
_MIN_DISTANCE = (
    1 / 250
)  # a curve's points are at least this far apart; a chart cannot show a finer curve


def roc_and_pr(scores: np.ndarray, labels: np.ndarray) -> tuple[Curve, Curve] | None:
    """(false positive rate, sensitivity) and (recall, precision) at every distinct score, from the highest down.

    Both curves are thinned to what a chart can show. The ROC curve starts at (0, 0), the PR curve at its first score.

    Args:
      scores: float [n]. labels: [n] of 0 and 1, and −1 where unknown.

    Returns:
      (ROC curve, PR curve); None where a class is absent.
    """
    scores, labels = scores[labels >= 0], labels[labels >= 0]
    if len(np.unique(labels)) < 2:
        return None
    false_positive_rate, sensitivity, _ = roc_curve(labels, scores, drop_intermediate=False)
    roc = zip(false_positive_rate.tolist(), sensitivity.tolist(), strict=True)
    # scikit-learn gives this curve from the lowest score up, and after the highest score a point that no score has.
    precision, recall, _ = precision_recall_curve(labels, scores)
    pr = zip(recall[-2::-1].tolist(), precision[-2::-1].tolist(), strict=True)
    return _thin(list(roc)), _thin(list(pr))


def _thin(curve: Curve) -> Curve:
    kept, last = curve[:1], len(curve) - 1
    for i, point in enumerate(curve[1:], 1):
        if i == last or math.dist(point, kept[-1]) >= _MIN_DISTANCE:
            kept.append(point)
    return kept


def series(
    lines: Sequence[Mapping[str, Any]], name: str, *, max_points: int = 150
) -> list[tuple[float, float | None]]:
    """(step, value) of one logged value: at most `max_points` points, each the mean of equally many lines of the log.

    A null in the log (the value was not finite) stays a gap. Lines without the value are left out.
    """
    values_of_step = [(line["step"], line[name]) for line in lines if name in line]
    width = -(-len(values_of_step) // max_points) or 1
    points: list[tuple[float, float | None]] = []
    for start in range(0, len(values_of_step), width):
        chunk = values_of_step[start : start + width]
        values = [value for _, value in chunk]
        mean = None if None in values else sum(values) / len(values)
        points.append((chunk[-1][0], mean))
    return points
