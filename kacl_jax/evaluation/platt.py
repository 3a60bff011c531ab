"""Platt scaling: from a network's raw logits to probabilities, fitted on the validation part.

The focal loss does not give probabilities: it lets go of examples that are nearly right (Mukhoti et al. 2020).
Axes: n images · c findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

MIN_EXAMPLES = 20  # positives, and negatives, of the validation part


@dataclass(frozen=True)
class PlattScaling:
    """probability = sigmoid(slope · logit + intercept). reason: why the raw score stands, or ''."""

    slope: float
    intercept: float
    positives: int
    negatives: int
    reason: str = ""


def fit(logits: np.ndarray, labels: np.ndarray) -> PlattScaling:
    """Logistic regression of one finding's labels on its logits, with Platt's targets (Platt 1999, §2.2).

    The targets are (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2) instead of 1 and 0, so that few examples do not give certainty.

    Args:
      logits: float [n]. labels: 0 or 1, [n].
    """
    x, positive = logits.astype(np.float64), labels == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    for name, number in (("positives", n_pos), ("negatives", n_neg)):
        if number < MIN_EXAMPLES:
            reason = (
                f"not calibrated: {number} {name} in the validation part, {MIN_EXAMPLES} are needed"
            )
            return PlattScaling(1.0, 0.0, n_pos, n_neg, reason)
    target = np.where(positive, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))
    # One order of summation, whatever the order of the rows, and a scale on which the minimum is easy to find.
    order = np.lexsort((target, x))
    x, target = x[order], target[order]
    center, spread = x.mean(), x.std() or 1.0
    z = (x - center) / spread

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        linear = parameters[0] * z + parameters[1]
        residual = expit(linear) - target
        loss = (np.logaddexp(0, linear) - target * linear).mean()
        return float(loss), np.array([(residual * z).mean(), residual.mean()])

    found = minimize(
        loss_and_gradient, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    slope = float(found.x[0] / spread)
    if slope <= 0:
        reason = "not calibrated: its score does not rise with the label in the validation part"
        return PlattScaling(1.0, 0.0, n_pos, n_neg, reason)
    return PlattScaling(slope, float(found.x[1]) - slope * float(center), n_pos, n_neg)


def calibrate(logits: np.ndarray, scalings: Sequence[PlattScaling]) -> np.ndarray:
    """Probabilities float64 [n c] of logits [n c], with one scaling for each finding."""
    slope = np.array([scaling.slope for scaling in scalings])
    intercept = np.array([scaling.intercept for scaling in scalings])
    return expit(logits.astype(np.float64) * slope + intercept)
