"""What moves one image's fused scores: the regressions, the cells of the grid, and the features in them.

A feature's share is coefficient · z-score, on the scale of the fused logit: what it adds to an image whose feature has
the mean of the training images. Axes: c findings · g² cells · f radiomic features of a cell · p features of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kacl_jax.fusion.scores import RADIOMICS, Fusion
from kacl_jax.radiomics import FAMILIES, FEATURE_NAMES

FEATURES_SHOWN = 6
_family_of = np.array([FAMILIES.index(name.split("_")[1]) for name in FEATURE_NAMES])


class FeatureShare(NamedTuple):
    """row, column: of the cell, from 0 at the top left. z: against the training images. share: of the logit."""

    row: int
    column: int
    name: str
    z: float
    share: float


_NONE: tuple[FeatureShare, ...] = ()


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one finding of one image has its fused score.

    network_logit: the network's own. fused_logit: the sum of it and `moved`.
    moved: what each regression adds to the logit, by source; without those that have no score.
    cells: float64 [g g], the shares of the cells; NaN for a missing cell. Empty without a regression on radiomics.
    features: those with the largest shares, the largest first.
    """

    network_logit: float
    fused_logit: float
    moved: Mapping[str, float]
    cells: np.ndarray
    features: tuple[FeatureShare, ...]


def logit_shares(fusion: Fusion, source: str, features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of one image: float64 [c p], NaN for a missing feature or a finding without this regression.

    features: by source, [p].
    """
    shares = fusion.ridges[source].shares(features[source])
    shares[[bool(reason) for reason in fusion.reasons(source)]] = np.nan
    return _logits_per_score(fusion, source, features)[:, None] * shares


def explain(
    fusion: Fusion, grid: int, logits: np.ndarray, features: Mapping[str, np.ndarray]
) -> list[Explanation]:
    """For each finding of one image, why it has its fused score. logits: the network's [c]. features: as above."""
    rows = {source: values[None] for source, values in features.items()}
    fused = fusion.fuse(logits[None], rows)[0]
    moved = {source: _moved(fusion, source, features) for source in fusion.ridges}
    shares = logit_shares(fusion, RADIOMICS, features) if RADIOMICS in fusion.ridges else None
    explanations = []
    for c, logit in enumerate(logits.tolist()):
        cells, largest = np.zeros((0, 0)), _NONE
        if shares is not None:
            cells = by_cell(shares[c]).reshape(grid, grid)
            z = fusion.ridges[RADIOMICS].standardise(features[RADIOMICS][None])[0]
            largest = _largest(shares[c], z, grid)
        explanations.append(
            Explanation(
                network_logit=logit,
                fused_logit=float(fused[c]),
                moved={s: float(v[c]) for s, v in moved.items() if np.isfinite(v[c])},
                cells=cells,
                features=largest,
            )
        )
    return explanations


def by_cell(shares: np.ndarray) -> np.ndarray:
    """Sums of shares [… p] over the features of each cell: [… g²], NaN for a missing cell."""
    return shares.reshape(*shares.shape[:-1], -1, len(FEATURE_NAMES)).sum(-1)


def by_family(shares: np.ndarray) -> np.ndarray:
    """Sums of shares [… p] over the features of each family in all cells that are there: [… families]."""
    by_feature = np.nansum(shares.reshape(*shares.shape[:-1], -1, len(FEATURE_NAMES)), axis=-2)
    return np.stack([by_feature[..., _family_of == k].sum(-1) for k in range(len(FAMILIES))], -1)


def _moved(fusion: Fusion, source: str, features: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a regression adds to each fused logit: float64 [c], NaN where it has no part."""
    score = fusion.ridges[source].scores(features[source][None])[0]
    centred = score - fusion.moments[source].mean
    return _logits_per_score(fusion, source, features) * centred


def _logits_per_score(
    fusion: Fusion, source: str, features: Mapping[str, np.ndarray]
) -> np.ndarray:
    """By how much a fused logit moves if a regression's score moves by 1: float64 [c]."""
    known = np.stack(
        [
            np.isfinite(fusion.ridges[one].scores(features[one][None])[0] / moments.spread)
            for one, moments in fusion.moments.items()
        ]
    )
    n_known = np.maximum(known.sum(0), 1)
    return fusion.weight * fusion.logit_spread / n_known / fusion.moments[source].spread


def _largest(shares: np.ndarray, z: np.ndarray, grid: int) -> tuple[FeatureShare, ...]:
    """The features with the largest shares, of shares and z-scores [p]."""
    order = np.argsort(-np.where(np.isfinite(shares), np.abs(shares), -1.0), kind="stable")[
        :FEATURES_SHOWN
    ]
    found = []
    for place in order[np.isfinite(shares[order])].tolist():
        cell, feature = divmod(place, len(FEATURE_NAMES))
        row, column = divmod(cell, grid)
        share = float(shares[place])
        found.append(FeatureShare(row, column, FEATURE_NAMES[feature], float(z[place]), share))
    return tuple(found)
