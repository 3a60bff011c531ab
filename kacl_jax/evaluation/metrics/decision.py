"""What a yes or no per image is worth: sensitivity, specificity, predictive values."""

from __future__ import annotations

import numpy as np

from kacl_jax.evaluation.metrics.bootstrap import RESAMPLES, Table, ratio_tables

DECISIONS = ("sensitivity", "specificity", "ppv", "npv")


def decision_tables(
    predicted: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    reasons: list[str],
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Table]:
    """The shares of right answers among the positive and the negative images (sensitivity, specificity) and among
    those called so (positive and negative predictive value), by name.

    Args: predicted bool [n c]; labels [n c] of 0 and 1; patients int [n]; reasons, per finding, why nothing could be
    predicted at all ('' where it could). Count n is the number of images that a share is of.
    """
    positive = labels == 1
    among = {
        "sensitivity": (positive, "no positive"),
        "specificity": (~positive, "no negative"),
        "ppv": (predicted, "predicted for no image"),
        "npv": (~predicted, "predicted for every image"),
    }
    right = predicted == positive
    decided = np.array([not reason for reason in reasons])
    return {
        name: ratio_tables(
            (right & of & decided)[:, :, None],
            of & decided,
            patients,
            [reason or nobody for reason in reasons],
            resamples,
        )[0]
        for name, (of, nobody) in among.items()
    }
