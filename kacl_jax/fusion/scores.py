"""Fused scores: the network's logit moves by what the ridge regressions say of the same image.

    fused logit = logit + weight · s · z      z: mean of the regressions' z-scores · s: spread of the network's logits

On each finding this ranks images as the sum of the z-scores, z(logit) + weight · z, does, and stays on the scale of the
network's logits. Where no regression has a score the logit is the network's own, to the bit.

The means and spreads are those of the validation part: on the training part network and regressions are too sure.
Axes: n images · c findings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from kacl_jax.evaluation.metrics import auroc
from kacl_jax.fusion.ridge import Ridge

RADIOMICS, IMAGE = "radiomics", "image"
SOURCES = {"radiomics": (RADIOMICS,), "image": (IMAGE,), "both": (RADIOMICS, IMAGE)}
# From these the weight is chosen. Of equally good ones the first.
WEIGHTS = (1.0, 0.5, 2.0, 0.25, 0.0)
Features = Mapping[str, np.ndarray]  # by source: float [n p]


@dataclass(frozen=True, eq=False)
class Moments:
    """float64 [c] each; NaN where a finding has no scores with a spread."""

    mean: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True, eq=False)
class Fusion:
    """How a network's logits and regressions become fused logits.

    ridges, moments: by source. logit_spread: float64 [c], of the network's logits.
    weight: for all findings. weight_reason: why it was not chosen on validation, or ''.
    """

    ridges: Mapping[str, Ridge]
    moments: Mapping[str, Moments]
    logit_spread: np.ndarray
    weight: float = 1.0
    weight_reason: str = field(default="")

    def fuse(self, logits: np.ndarray, features: Features) -> np.ndarray:
        """Fused logits float64 [n c] of logits [n c] and the features of the same images."""
        shift = self.weight * self.logit_spread * self.partner(features)
        own = logits.astype(np.float64)
        return np.where(np.isfinite(shift), own + np.where(np.isfinite(shift), shift, 0.0), own)

    def partner(self, features: Features) -> np.ndarray:
        """The mean z-score of the regressions that have a score: float64 [n c], NaN where none has."""
        z_scores = np.stack([self._z(source, features[source]) for source in self.ridges])
        known = np.isfinite(z_scores)
        n_known = known.sum(0)
        total = np.where(known, z_scores, 0.0).sum(0)
        return np.divide(total, n_known, out=np.full(total.shape, np.nan), where=n_known > 0)

    def reasons(self, source: str) -> tuple[str, ...]:
        """Why the regression of a source has no part in a finding's score, or ''; by finding."""
        flat = "its scores are the same for all images"
        spread = self.moments[source].spread
        return tuple(
            reason or ("" if math.isfinite(width) else flat)
            for reason, width in zip(self.ridges[source].reasons, spread, strict=True)
        )

    def _z(self, source: str, features: np.ndarray) -> np.ndarray:
        moments = self.moments[source]
        return (self.ridges[source].scores(features) - moments.mean) / moments.spread


def build(
    ridges: Mapping[str, Ridge],
    *,
    reference: Features,
    reference_logits: np.ndarray,
    val_labels: np.ndarray | None,
) -> Fusion:
    """The fusion of these regressions.

    Args:
      ridges: by source. reference: the features of the n images whose moments make z-scores, by source.
      reference_logits: the network's, of the same images, [n c].
      val_labels: of the same images, [n c], if they are the validation part, on which the weight is chosen. None: they
        are training images, and the weight is 1.
    """
    fusion = Fusion(
        ridges=ridges,
        moments={source: _moments(ridges[source].scores(reference[source])) for source in ridges},
        logit_spread=_moments(reference_logits.astype(np.float64)).spread,
        weight_reason="there is no validation part",
    )
    if val_labels is None:
        return fusion
    weighted = [dataclasses.replace(fusion, weight=weight, weight_reason="") for weight in WEIGHTS]
    values = [
        _mean_auroc(candidate.fuse(reference_logits, reference), val_labels)
        for candidate in weighted
    ]
    if not np.isfinite(values).any():
        reason = "no finding has positives and negatives in the validation part"
        return dataclasses.replace(fusion, weight_reason=reason)
    return weighted[int(np.nanargmax(values))]


def _moments(scores: np.ndarray) -> Moments:
    """Of scores [n c], over the images that have one."""
    means, spreads = [], []
    for column in scores.T:
        values = column[np.isfinite(column)]
        has_spread = len(values) > 1 and bool(np.ptp(values) > 0)
        means.append(values.mean() if has_spread else math.nan)
        spreads.append(values.std() if has_spread else math.nan)
    return Moments(np.array(means), np.array(spreads))


def _mean_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Over the findings that have both classes; NaN if none has."""
    values = [auroc(scores[:, c], labels[:, c]) for c in range(labels.shape[1])]
    defined = [value for value in values if math.isfinite(value)]
    return float(np.mean(defined)) if defined else math.nan
