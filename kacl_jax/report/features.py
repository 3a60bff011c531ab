"""Radiomic features of regions: which tell positives from negatives, and which stand out in one image.

Axes: k regions · n images · f features.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics.bootstrap import divide
from kacl_jax.radiomics import FEATURE_NAMES, LOG_COLUMNS
from kacl_jax.step import scaling

SHUFFLES = 200
_FEWEST = 5  # images of a class that must have a feature for it to be judged
_SAME = 0.9  # rank correlation above which two features tell the same


class Moments(NamedTuple):
    """Mean and variance of the features after signed log1p: float [f] each."""

    mean: np.ndarray
    var: np.ndarray


class Telling(NamedTuple):
    """One feature's ranking of images with a finding against those without.

    auroc: above .5, larger values go with the finding. images, left_out: with and without the feature (NaN).
    """

    name: str
    auroc: float
    ci95: tuple[float, float] | None
    images: int
    left_out: int


class StandsOut(NamedTuple):
    """One feature of one region. z: against the moments, clipped to ±10; value: as measured."""

    name: str
    z: float
    value: float


def sample(image_ids: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the images, the same ones every time, ascending."""
    if len(image_ids) <= most:
        return np.sort(image_ids)
    return np.sort(np.random.default_rng(0).choice(image_ids, most, replace=False))


def compressed(features: np.ndarray) -> np.ndarray:
    """Signed log1p on the scale-like columns, as in training: float [k f]; NaN stays NaN."""
    return np.where(LOG_COLUMNS, np.sign(features) * np.log1p(np.abs(features)), features)


def moments(features: np.ndarray) -> Moments:
    """Of the defined values of float [k f]; a feature that is nowhere defined has NaN."""
    x = compressed(features)
    there = np.isfinite(x)
    count = there.sum(0)
    mean = divide(np.where(there, x, 0).sum(0), count)
    return Moments(mean, divide(np.where(there, (x - mean) ** 2, 0).sum(0), count))


def standing_out(features: np.ndarray, against: Moments, most: int = 8) -> list[StandsOut]:
    """The features of one region, float [f], with the largest |z|; undefined ones are left out."""
    row = (compressed(features), *against)
    z = np.asarray(scaling.z_score(*map(jnp.asarray, row)), np.float64)
    # A column without spread is 0 to z_score, whatever its value.
    there = np.isfinite(features) & np.isfinite(against.mean)
    order = sorted(np.flatnonzero(there), key=lambda i: -abs(z[i]))
    return [StandsOut(FEATURE_NAMES[i], float(z[i]), float(features[i])) for i in order[:most]]


def telling(
    features: np.ndarray,
    positive: np.ndarray,
    patients: np.ndarray,
    *,
    resamples: int,
    most: int = 5,
) -> list[Telling]:
    """The features that rank the images best by |AUROC − ½|, each a different one: of several that rank the images
    alike (rank correlation over .9) only the best. Judged are those that five images of each class have.

    Args:
      features: float [n f], one region of each image. positive: bool [n]. patients: int [n].
      resamples: of patients, for the intervals.

    Returns:
      At most `most`; nothing where a class is absent.
    """
    alone = aurocs(features, positive[:, None])[:, 0]
    order = sorted(np.flatnonzero(_judged(features, positive)), key=lambda i: -abs(alone[i] - 0.5))
    chosen: list[int] = []
    for i in map(int, order):
        if len(chosen) == most:
            break
        if all(abs(_rank_correlation(features[:, i], features[:, j])) <= _SAME for j in chosen):
            chosen.append(i)
    return [_telling(i, features[:, i], positive, patients, resamples) for i in chosen]


def _telling(
    i: int, values: np.ndarray, positive: np.ndarray, patients: np.ndarray, resamples: int
) -> Telling:
    there = np.isfinite(values)
    table = metrics.auroc_table(
        values[there][:, None], positive[there][:, None], patients[there], resamples=resamples
    )
    (alone,) = table.findings
    n = int(there.sum())
    return Telling(FEATURE_NAMES[i], alone.value, alone.ci95, n, len(values) - n)


def by_chance(features: np.ndarray, positive: np.ndarray) -> float | None:
    """|AUROC − ½| that the best of the features that `telling` judges reaches in one of twenty random orders of the
    labels.

    None where there is none. The orders are of images, not of patients.
    """
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(positive) for _ in range(SHUFFLES)], axis=1)
    judged = features[:, _judged(features, positive)]
    if not judged.size:
        return None
    away = np.abs(aurocs(judged, shuffled) - 0.5)
    reached = np.where(np.isfinite(away), away, 0).max(axis=0)
    return float(np.quantile(reached, 0.95))


def _judged(features: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Which of the features [n f] enough images of each class have: bool [f]."""
    there = np.isfinite(features)
    return (there[positive].sum(0) >= _FEWEST) & (there[~positive].sum(0) >= _FEWEST)


def aurocs(features: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every feature alone for several labellings: float [n f], bool [n p] → [f p].

    Images without the feature are left out; NaN where a class is absent. By ranks (Mann and Whitney 1947).
    """
    there = np.isfinite(features)
    ranks = np.where(there, rankdata(features, axis=0, nan_policy="omit"), 0.0)
    n_pos = there.T.astype(float) @ positive
    n_neg = there.sum(0)[:, None] - n_pos
    return divide(ranks.T @ positive - n_pos * (n_pos + 1) / 2, n_pos * n_neg)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, over the images that have both; 0 where one is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    first, second = rankdata(a[both]), rankdata(b[both])
    if both.sum() < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
