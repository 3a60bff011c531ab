"""What the lines of a chart go through. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Curve = list[tuple[float, float]]
_STEP = 1 / 250  # a curve's points are at least this far apart: finer than a chart shows


def roc_and_pr(scores: np.ndarray, labels: np.ndarray) -> tuple[Curve, Curve] | None:
    """(false positive rate, sensitivity) and (recall, precision) at every distinct score, from the highest down.

    float [n], [n] of 0 and 1; None where a class is absent. Thinned to what a chart shows; the ROC curve starts at
    (0, 0), the PR curve at its first score.
    """
    positive = np.asarray(labels) == 1
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    true = np.cumsum(positive[order])[last]
    false = last + 1 - true
    recall = true / positive.sum()
    roc = [(0.0, 0.0), *zip((false / (~positive).sum()).tolist(), recall.tolist(), strict=True)]
    pr = list(zip(recall.tolist(), (true / (last + 1)).tolist(), strict=True))
    return _thinned(roc), _thinned(pr)


def _thinned(curve: Curve) -> Curve:
    kept, last = curve[:1], len(curve) - 1
    for at, point in enumerate(curve[1:], 1):
        if at == last or math.dist(point, kept[-1]) >= _STEP:
            kept.append(point)
    return kept


def series(
    lines: Sequence[Mapping[str, Any]], name: str, *, most: int = 150
) -> list[tuple[float, float | None]]:
    """(step, value) of one figure over logged lines, at most `most` points, each a mean of equally many lines.

    A null (not finite) stays a gap. Lines without the figure are left out.
    """
    found = [(line["step"], line[name]) for line in lines if name in line]
    width = -(-len(found) // most) or 1
    points: list[tuple[float, float | None]] = []
    for start in range(0, len(found), width):
        chunk = found[start : start + width]
        values = [value for _, value in chunk]
        mean = None if None in values else sum(values) / len(values)
        points.append((chunk[-1][0], mean))
    return points
