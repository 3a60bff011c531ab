"""Metrics of a yes-or-no prediction per image: sensitivity, specificity, predictive values."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Shaped

from kacl_jax.evaluation.metrics.bootstrap import RESAMPLES, Table, ratio_tables

DECISION_METRICS = ("sensitivity", "specificity", "ppv", "npv")


def decision_tables(
    predicted: Bool[np.ndarray, "n c"],
    labels: Shaped[np.ndarray, "n c"],
    patients: Int[np.ndarray, "n"],
    reasons: list[str],
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Table]:
    """Sensitivity, specificity, positive and negative predictive value, by name.

    Each is a share of correct predictions: among the positive images, the negative images, the images predicted
    positive and those predicted negative.

    Args: labels 1, 0, or −1 where unknown, of any dtype; reasons, per finding, why there is no
    prediction at all ('' where there is one). Count n is the number of images in the denominator.
    An image with an unknown label is in none.
    """
    positive, known = labels == 1, labels >= 0
    denominators = {
        "sensitivity": (positive, "no positive"),
        "specificity": (labels == 0, "no negative"),
        "ppv": (predicted & known, "predicted for no image"),
        "npv": (~predicted & known, "predicted for every image"),
    }
    correct = predicted == positive
    has_prediction = np.array([not reason for reason in reasons])
    return {
        name: ratio_tables(
            (correct & denominator & has_prediction)[:, :, None],
            denominator & has_prediction,
            patients,
            [reason or empty_reason for reason in reasons],
            resamples,
        )[0]
        for name, (denominator, empty_reason) in denominators.items()
    }
