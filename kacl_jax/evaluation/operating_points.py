"""Operating points: thresholds chosen on the validation part, and their metrics on the test part.

Axes: n images · c findings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kacl_jax.data.records import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import Table
from kacl_jax.evaluation.outputs import Outputs, labelled_scores


@dataclass(frozen=True)
class OperatingPoint:
    """A finding is predicted where its probability ≥ threshold; never where that is NaN, and `reason` says why."""

    threshold: float
    youden_j: float
    reason: str = ""


def choose_operating_points(
    outputs: Outputs, records: Records, split: Split
) -> tuple[OperatingPoint, ...]:
    """Per finding the threshold with the highest Youden J (TPR − FPR) on the validation part.

    Of several such thresholds the highest is taken: it predicts fewer positives for the same J.
    """
    val = labelled_scores(outputs, records, split.val)
    known = val.labels >= 0
    return tuple(
        _highest_youden(val.probability[rows, i], val.labels[rows, i] == 1)
        for i, rows in enumerate(known.T)
    )


def _highest_youden(scores: np.ndarray, positive: np.ndarray) -> OperatingPoint:
    reason = metrics.missing_class_reason(int(positive.sum()), int((~positive).sum()))
    if reason:
        nan = float("nan")
        return OperatingPoint(nan, nan, f"{reason} in the validation part")
    levels, level_index = np.unique(scores, return_inverse=True)
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    # J · n_pos · n_neg is a whole number, so ties are found exactly.
    gains = np.where(positive, n_neg, -n_pos)
    gain_per_level = np.zeros(len(levels), np.int64)
    np.add.at(gain_per_level, level_index, gains)
    # J · n_pos · n_neg of "score ≥ level", the highest level first.
    scaled_j = np.cumsum(gain_per_level[::-1])
    best_index = int(scaled_j.argmax())
    return OperatingPoint(
        float(levels[::-1][best_index]), int(scaled_j[best_index]) / (n_pos * n_neg)
    )


def is_predicted_positive(
    probability: np.ndarray, operating_points: tuple[OperatingPoint, ...]
) -> np.ndarray:
    """Whether each finding is predicted: probability float64 [n c] → bool [n c]."""
    # False where the threshold is NaN.
    return probability >= [point.threshold for point in operating_points]


def operating_point_tables(
    outputs: Outputs,
    records: Records,
    split: Split,
    operating_points: tuple[OperatingPoint, ...],
    *,
    resamples: int = metrics.RESAMPLES,
) -> dict[str, Table]:
    """Sensitivity, specificity and predictive values of the operating points on the test part, by name."""
    test = labelled_scores(outputs, records, split.test)
    return metrics.decision_tables(
        is_predicted_positive(test.probability, operating_points),
        test.labels,
        test.patients,
        [point.reason for point in operating_points],
        resamples=resamples,
    )
