"""How like the training images an image is: the Mahalanobis distance of its embedding to theirs.

A network gives findings for a photograph, too. This distance tells such images (Lee et al. 2018, with one class). It is
taken between logarithms, because channels are ≥ 0 and skewed: without them a hip was nearer than some chests.
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
    """An embedding x is compared as log(1 + x / scale).

    mean: float32 [k]. factor: float32 [k k], lower triangular: factor · factorᵀ is the covariance's inverse.
    threshold: an image beyond this distance is not like the training images.
    """

    scale: float
    mean: np.ndarray
    factor: np.ndarray
    threshold: float

    def distance(self, embeddings: np.ndarray) -> np.ndarray:
        """The Mahalanobis distances float64 [n] of embeddings float32 [n k]."""
        centred = _compress(embeddings, self.scale) - self.mean
        return np.linalg.norm(centred @ self.factor.astype(np.float64), axis=1)


def fit(training: np.ndarray, validation: np.ndarray) -> Familiarity:
    """The distance from the training images' embeddings, its threshold from the validation images'.

    The covariance is shrunk (Ledoit and Wolf 2004), so that fewer images than channels are enough.

    Args:
      training: float32 [n k], n ≥ 2. validation: float32 [m k], m ≥ 1.
    """
    positive = training[training > 0]
    scale = float(np.median(positive)) if positive.size else 1.0
    covariance = LedoitWolf().fit(_compress(training, scale))
    factor = cholesky(covariance.precision_, lower=True).astype(np.float32)
    mean = covariance.location_.astype(np.float32)
    distances = Familiarity(scale, mean, factor, np.inf).distance(validation)
    threshold = np.quantile(distances, VALIDATION_QUANTILE, method="higher")
    return Familiarity(scale, mean, factor, float(threshold))


def _compress(embeddings: np.ndarray, scale: float) -> np.ndarray:
    """float64 [n k]; a channel is a mean of values ≥ 0."""
    return np.log1p(np.maximum(embeddings.astype(np.float64), 0) / scale)
