"""Where "yes" begins: operating points, chosen on the validation part, and what they are worth on the test part.

Axes: n images · c findings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kacl_jax.data.nih import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import Table
from kacl_jax.evaluation.outputs import Outputs, part


@dataclass(frozen=True)
class OperatingPoint:
    """A finding is predicted where its probability ≥ threshold (NaN with a reason: never)."""

    threshold: float
    youden_j: float
    reason: str = ""


def operating_points(
    outputs: Outputs, records: Records, split: Split
) -> tuple[OperatingPoint, ...]:
    """Per finding the threshold with the highest Youden J (TPR − FPR) on the validation part.

    Of several the highest is taken: fewer positives for the same J.
    """
    val = part(outputs, records, split.val)
    return tuple(
        _youden(val.probability[:, i], val.labels[:, i] == 1) for i in range(len(records.findings))
    )


def _youden(scores: np.ndarray, positive: np.ndarray) -> OperatingPoint:
    reason = metrics.one_class(int(positive.sum()), int((~positive).sum()))
    if reason:
        nan = float("nan")
        return OperatingPoint(nan, nan, f"{reason} in the validation part")
    levels, group = np.unique(scores, return_inverse=True)
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    # Times both counts J is a whole number: a tie is one.
    gain = np.where(positive, n_neg, -n_pos)
    whole = np.zeros(len(levels), np.int64)
    np.add.at(whole, group, gain)
    youden = np.cumsum(whole[::-1])  # of "score ≥ level", the highest level first
    best = int(youden.argmax())
    return OperatingPoint(float(levels[::-1][best]), int(youden[best]) / (n_pos * n_neg))


def decided(probability: np.ndarray, points: tuple[OperatingPoint, ...]) -> np.ndarray:
    """Whether each finding is predicted: probability float64 [n c] → bool [n c]."""
    return probability >= [point.threshold for point in points]  # NaN: never


def decisions(
    outputs: Outputs,
    records: Records,
    split: Split,
    points: tuple[OperatingPoint, ...],
    *,
    resamples: int = metrics.RESAMPLES,
) -> dict[str, Table]:
    """Sensitivity, specificity and predictive values of the points on the test part, by name."""
    test = part(outputs, records, split.test)
    return metrics.decision_tables(
        decided(test.probability, points),
        test.labels,
        test.patients,
        [point.reason for point in points],
        resamples=resamples,
    )
