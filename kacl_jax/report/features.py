"""Radiomic features of regions: which separate positives from negatives, and which are unusual in one image.

Axes: k regions · n images · f features.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata, spearmanr

from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics.bootstrap import divide
from kacl_jax.radiomics import FEATURE_NAMES, LOG_COLUMNS
from kacl_jax.step import scaling

SHUFFLES = 200
_MIN_IMAGES_PER_CLASS = 5  # a feature that fewer images of a class have is not ranked
_MAX_RANK_CORRELATION = 0.9  # above it two features say the same, and only the better one is listed


class Moments(NamedTuple):
    """Mean and variance of the features after signed log1p: float [f] each."""

    mean: np.ndarray
    var: np.ndarray


class DiscriminatingFeature(NamedTuple):
    """How well one feature ranks images with a finding above or below those without it.

    auroc: above 0.5 if larger values go with the finding. images: how many have the feature; left_out: how many do
      not (NaN).
    """

    name: str
    auroc: float
    ci95: tuple[float, float] | None
    images: int
    left_out: int


class OutlyingFeature(NamedTuple):
    """One feature of one region. z: by the reference moments, clipped to ±10. value: as measured."""

    name: str
    z: float
    value: float


def sample_images(image_ids: np.ndarray, max_images: int) -> np.ndarray:
    """At most `max_images` of the images, the same ones in every call, in ascending order."""
    if len(image_ids) <= max_images:
        return np.sort(image_ids)
    return np.sort(np.random.default_rng(0).choice(image_ids, max_images, replace=False))


def log_compress(features: np.ndarray) -> np.ndarray:
    """Signed log1p of the scale-like columns, as in training: float [k f]; NaN stays NaN."""
    return np.where(LOG_COLUMNS, np.sign(features) * np.log1p(np.abs(features)), features)


def feature_moments(features: np.ndarray) -> Moments:
    """Mean and variance over the defined values of float [k f]; NaN for a feature that no region has."""
    x = log_compress(features)
    defined = np.isfinite(x)
    n_defined = defined.sum(0)
    mean = divide(np.where(defined, x, 0).sum(0), n_defined)
    return Moments(mean, divide(np.where(defined, (x - mean) ** 2, 0).sum(0), n_defined))


def outlying_features(
    features: np.ndarray, reference: Moments, max_features: int = 8
) -> list[OutlyingFeature]:
    """The features of one region, float [f], with the largest |z|; undefined ones are left out."""
    row = (log_compress(features), *reference)
    z = np.asarray(scaling.z_score(*map(jnp.asarray, row)), np.float64)
    # z_score gives 0 to a column without variance, whatever the value is.
    defined = np.isfinite(features) & np.isfinite(reference.mean)
    order = sorted(np.flatnonzero(defined), key=lambda i: -abs(z[i]))
    return [
        OutlyingFeature(FEATURE_NAMES[i], float(z[i]), float(features[i]))
        for i in order[:max_features]
    ]


def discriminating_features(
    features: np.ndarray,
    positive: np.ndarray,
    patients: np.ndarray,
    *,
    resamples: int,
    max_features: int = 5,
) -> list[DiscriminatingFeature]:
    """The features that rank the images best by |AUROC − 0.5|.

    Of several features that rank the images alike (rank correlation above 0.9) only the best one is returned. Only
    features that five images of each class have are ranked.

    Args:
      features: float [n f], one region of each image. positive: bool [n]. patients: int [n].
      resamples: of patients, for the intervals.

    Returns:
      At most `max_features`; an empty list where a class is absent.
    """
    auroc = aurocs(features, positive[:, None])[:, 0]
    candidates = np.flatnonzero(_has_enough_images(features, positive))
    order = sorted(candidates, key=lambda i: -abs(auroc[i] - 0.5))
    chosen: list[int] = []
    for i in map(int, order):
        if len(chosen) == max_features:
            break
        if all(
            abs(_rank_correlation(features[:, i], features[:, j])) <= _MAX_RANK_CORRELATION
            for j in chosen
        ):
            chosen.append(i)
    return [
        _discriminating_feature(i, features[:, i], positive, patients, resamples) for i in chosen
    ]


def _discriminating_feature(
    i: int, values: np.ndarray, positive: np.ndarray, patients: np.ndarray, resamples: int
) -> DiscriminatingFeature:
    defined = np.isfinite(values)
    table = metrics.auroc_table(
        values[defined][:, None], positive[defined][:, None], patients[defined], resamples=resamples
    )
    (estimate,) = table.findings
    n = int(defined.sum())
    return DiscriminatingFeature(
        FEATURE_NAMES[i], estimate.value, estimate.ci95, n, len(values) - n
    )


def chance_level(features: np.ndarray, positive: np.ndarray) -> float | None:
    """|AUROC − 0.5| that the best feature exceeds in one of twenty random orders of the labels.

    The features are those that `discriminating_features` ranks; None if there are none. Labels are shuffled over
    images, not over patients.
    """
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(positive) for _ in range(SHUFFLES)], axis=1)
    candidates = features[:, _has_enough_images(features, positive)]
    if not candidates.size:
        return None
    distance = np.abs(aurocs(candidates, shuffled) - 0.5)
    largest = np.where(np.isfinite(distance), distance, 0).max(axis=0)
    return float(np.quantile(largest, 0.95))


def _has_enough_images(features: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """bool [f]: whether enough images of each class have the feature; float [n f]."""
    defined = np.isfinite(features)
    n_pos, n_neg = defined[positive].sum(0), defined[~positive].sum(0)
    return (n_pos >= _MIN_IMAGES_PER_CLASS) & (n_neg >= _MIN_IMAGES_PER_CLASS)


def aurocs(features: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every single feature for several labellings: float [n f], bool [n p] → [f p].

    Images without the feature are left out; NaN where a class is absent. Computed from ranks (Mann and
    Whitney 1947).
    """
    defined = np.isfinite(features)
    ranks = np.where(defined, rankdata(features, axis=0, nan_policy="omit"), 0.0)
    n_pos = defined.T.astype(float) @ positive
    n_neg = defined.sum(0)[:, None] - n_pos
    return divide(ranks.T @ positive - n_pos * (n_pos + 1) / 2, n_pos * n_neg)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation over the images that have both features; 0 where one of them is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return 0.0
    return float(spearmanr(a[both], b[both]).statistic)
