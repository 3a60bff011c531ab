"""How like the training images an image is: the Mahalanobis distance of its embedding to theirs.

A network gives findings for a photograph, too. This distance tells such images (Lee et al. 2018, with one class).
Axes: n images · k channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky
from sklearn.covariance import LedoitWolf

VALIDATION_QUANTILE = (
    0.975  # so that chance and a shift between patients leave held-out images under 5 %
)


@dataclass(frozen=True, eq=False)
class Familiarity:
    """mean: float32 [k]. factor: float32 [k k], lower triangular: factor · factorᵀ is the covariance's inverse.

    threshold: an image beyond this distance is not like the training images.
    """

    mean: np.ndarray
    factor: np.ndarray
    threshold: float

    def distance(self, embeddings: np.ndarray) -> np.ndarray:
        """The Mahalanobis distances float64 [n] of embeddings float32 [n k]."""
        centred = embeddings.astype(np.float64) - self.mean
        return np.linalg.norm(centred @ self.factor.astype(np.float64), axis=1)


def fit(training: np.ndarray, validation: np.ndarray) -> Familiarity:
    """The distance from the training images' embeddings, its threshold from the validation images'.

    The covariance is shrunk (Ledoit and Wolf 2004), so that fewer images than channels are enough.

    Args:
      training: float32 [n k], n ≥ 2. validation: float32 [m k], m ≥ 1.
    """
    covariance = LedoitWolf().fit(training.astype(np.float64))
    factor = cholesky(covariance.precision_, lower=True).astype(np.float32)
    mean = covariance.location_.astype(np.float32)
    distances = Familiarity(mean, factor, np.inf).distance(validation)
    threshold = np.quantile(distances, VALIDATION_QUANTILE, method="higher")
    return Familiarity(mean, factor, float(threshold))
