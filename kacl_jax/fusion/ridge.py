"""Ridge regressions of all findings on one table of features, in closed form (Hoerl and Kennard 1970).

One penalty serves all findings. It is the one with the highest mean AUROC on held-out patients of the training rows: a
choice for each finding would follow the noise of a few positives.

Only sums over rows are needed, XᵀX and XᵀY, so the rows pass in blocks: 112,120 × 1,632 need no second copy.
Axes: n rows · p features · c findings · r directions of the rows (at most n and p) · k penalties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.linalg import eigh, qr

from kacl_jax.evaluation.metrics import auroc

MIN_EXAMPLES = 5  # positives, and negatives, of the training rows
FOLDS = 5
# Of the squared length of the coefficients, per training row. The largest first: it wins a tie.
PENALTIES = (100.0, 31.6, 10.0, 3.16, 1.0, 0.316, 0.1, 0.0316)
Z_CLIP = 10.0  # as in training
_BLOCK = 4096  # rows that are in memory as float64 at once


@dataclass(frozen=True, eq=False)
class Ridge:
    """One regression per finding: score = intercept + Σ coef · z.

    mean: float64 [p] of the training rows. scale: float64 [p], 1 / spread; 0 for a feature without spread.
    coef: float64 [c p], 0 where the finding has no regression. intercept: float64 [c].
    penalty: of `PENALTIES`. reasons: of each finding, why it has no regression, or ''.
    """

    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    penalty: float
    reasons: tuple[str, ...]

    def standardise(self, features: np.ndarray) -> np.ndarray:
        """z-scores float64 [n p] by the training rows' moments, clipped to ±10; a missing feature stays NaN."""
        z = (features.astype(np.float64) - self.mean) * self.scale
        return np.clip(z, -Z_CLIP, Z_CLIP)

    def shares(self, features: np.ndarray) -> np.ndarray:
        """What each feature of one image adds to each finding's score: features [p] → float64 [c p], NaN if missing."""
        return self.coef * self.standardise(features[None])[0]

    def scores(self, features: np.ndarray) -> np.ndarray:
        """float64 [n c]. A missing feature adds nothing, as if it had the training rows' mean.

        NaN for a finding without a regression, and for an image that has no feature.
        """
        scores = np.full((len(features), len(self.coef)), np.nan)
        fitted = [c for c, reason in enumerate(self.reasons) if not reason]
        for row, values in enumerate(features):
            # Image by image, because a matrix product of many rows may round otherwise than of one.
            shares = self.shares(values)
            known = ~np.isnan(shares[0])
            if known.any():
                total = np.where(known, shares, 0.0).sum(1) + self.intercept
                scores[row, fitted] = total[fitted]
        return scores


def fit(features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> Ridge:
    """See `fit_with_held_out`."""
    return fit_with_held_out(features, labels, patients)[0]


def fit_with_held_out(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray
) -> tuple[Ridge, np.ndarray]:
    """The regressions of the training rows.

    Args:
      features: float [n p], NaN where missing; a row without any takes no part.
      labels: [n c], 1, 0, or −1 where unknown: such a pair takes no part.
      patients: int [n]. No patient is in two folds.

    Returns:
      (the regressions, scores float64 [n c] of the same rows by regressions on the other folds with the same penalty).
      A score is NaN where the row or its label took no part.
    """
    held_out = np.full(labels.shape, np.nan)
    known_row = ~np.isnan(features).all(1) if features.size else np.zeros(len(features), bool)
    features, labels, patients = features[known_row], labels[known_row], patients[known_row]
    reasons = tuple(_why_none(column, patients) for column in labels.T)
    mean, scale = _moments(features)
    n_findings, p = labels.shape[1], features.shape[1]
    ridge = Ridge(
        mean, scale, np.zeros((n_findings, p)), np.zeros(n_findings), PENALTIES[0], reasons
    )
    groups = _same_known_rows(labels, reasons)
    if not groups:
        return ridge, held_out
    fold = patient_folds(patients)
    solved = [_Group(ridge, features, labels, fold, group) for group in groups]
    scores = [group.held_out_scores() for group in solved]
    aurocs = [group.aurocs(s) for group, s in zip(solved, scores, strict=True)]
    best = int(np.nanmean(np.concatenate(aurocs, axis=1), axis=1).argmax())
    penalty = PENALTIES[best]
    for group, of_penalties in zip(solved, scores, strict=True):
        rows = np.flatnonzero(known_row)[group.rows, None]
        held_out[rows, group.findings] = of_penalties[best]
        coef, intercept = group.solve(penalty)
        ridge.coef[group.findings] = coef.T
        ridge.intercept[group.findings] = intercept
    return Ridge(mean, scale, _as_stored(ridge.coef), ridge.intercept, penalty, reasons), held_out


def patient_folds(patients: np.ndarray) -> np.ndarray:
    """int [n]: the fold of each row, the same for all rows of a patient."""
    values, index = np.unique(patients, return_inverse=True)
    of_patient = np.random.default_rng(0).permutation(len(values)) % FOLDS
    return np.asarray(of_patient[index])


@dataclass(frozen=True, eq=False)
class Sums:
    """The sums over rows that a regression needs: n, Σx [r], Σy [c], Σxxᵀ [r r], Σxyᵀ [r c]."""

    n: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    def __add__(self, other: Sums) -> Sums:
        parts = ("n", "x", "y", "xx", "xy")
        return Sums(*(getattr(self, name) + getattr(other, name) for name in parts))

    def __sub__(self, other: Sums) -> Sums:
        parts = ("n", "x", "y", "xx", "xy")
        return Sums(*(getattr(self, name) - getattr(other, name) for name in parts))


def solve(sums: Sums, penalties: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [k r c] and intercepts [k c] that minimise Σ (y − b − xᵀw)² + penalty · ‖w‖² for each penalty."""
    mean_x, mean_y = sums.x / sums.n, sums.y / sums.n
    gram = sums.xx - sums.n * np.outer(mean_x, mean_x)
    values, vectors = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
    cross = vectors.T @ (sums.xy - sums.n * np.outer(mean_x, mean_y))
    coef = np.stack(
        [vectors @ (cross / (np.maximum(values, 0) + penalty)[:, None]) for penalty in penalties]
    )
    return coef, mean_y - mean_x @ coef


class _Group:
    """Findings whose labels are known in the same rows, so that one XᵀX serves all of them. rows: int [m]."""

    def __init__(
        self,
        ridge: Ridge,
        features: np.ndarray,
        labels: np.ndarray,
        fold: np.ndarray,
        findings: list[int],
    ) -> None:
        self.findings = findings
        self._ridge, self._features = ridge, features
        self.rows = np.flatnonzero(labels[:, findings[0]] >= 0)
        self._labels = (labels[:, findings] == 1).astype(np.float64)
        self._fold = fold
        # Coefficients lie in the span of the rows. With fewer rows than features its axes are fewer than the features.
        self._axes: np.ndarray | None = None
        if len(self.rows) < features.shape[1]:
            self._axes = qr(self._standardise(self.rows).T, mode="economic")[0]
        self._by_fold = {k: self._sum(self.rows[fold[self.rows] == k]) for k in range(FOLDS)}
        self._total = reduce(lambda a, b: a + b, self._by_fold.values())

    def held_out_scores(self) -> np.ndarray:
        """Scores [k m c] of `rows` with every penalty, each patient scored by the regressions on the other folds."""
        scores = np.zeros((len(PENALTIES), len(self._labels), len(self.findings)))
        for k, own in self._by_fold.items():
            rest = self._total - own
            if not own.n or not rest.n:
                continue
            coef, intercept = solve(rest, [rest.n * penalty for penalty in PENALTIES])
            for rows, x in self._blocks(self.rows[self._fold[self.rows] == k]):
                scores[:, rows] = x @ coef + intercept[:, None]
        return scores[:, self.rows]

    def aurocs(self, scores: np.ndarray) -> np.ndarray:
        """AUROC [k c] of scores [k m c] of `rows`."""
        return np.array(
            [
                [
                    auroc(of_penalty[:, c], self._labels[self.rows, c])
                    for c in range(len(self.findings))
                ]
                for of_penalty in scores
            ]
        )

    def solve(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients of the features [p c] and intercepts [c], on all rows."""
        coef, intercept = solve(self._total, [self._total.n * penalty])
        return (coef[0] if self._axes is None else self._axes @ coef[0]), intercept[0]

    def _sum(self, rows: np.ndarray) -> Sums:
        r = self._features.shape[1] if self._axes is None else self._axes.shape[1]
        c = len(self.findings)
        total = Sums(0, np.zeros(r), np.zeros(c), np.zeros((r, r)), np.zeros((r, c)))
        for some, x in self._blocks(rows):
            y = self._labels[some]
            total = total + Sums(len(some), x.sum(0), y.sum(0), x.T @ x, x.T @ y)
        return total

    def _blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some of the rows at a time, and their coordinates float64 [m r]."""
        for start in range(0, len(rows), _BLOCK):
            some = rows[start : start + _BLOCK]
            z = self._standardise(some)
            yield some, z if self._axes is None else z @ self._axes

    def _standardise(self, rows: np.ndarray) -> np.ndarray:
        """z-scores [m p]; a missing feature takes no part in any sum."""
        z = self._ridge.standardise(self._features[rows])
        return np.where(np.isnan(z), 0.0, z)


def _why_none(labels: np.ndarray, patients: np.ndarray) -> str:
    for name, number in (("positives", (labels == 1).sum()), ("negatives", (labels == 0).sum())):
        if number < MIN_EXAMPLES:
            return f"{number} {name} in the training part, {MIN_EXAMPLES} are needed"
    if len(np.unique(patients[labels >= 0])) < 2:
        return "one patient only in the training part"
    return ""


def _same_known_rows(labels: np.ndarray, reasons: Sequence[str]) -> list[list[int]]:
    """The findings that have a regression, grouped by the rows in which they are known."""
    groups: dict[bytes, list[int]] = {}
    for c, reason in enumerate(reasons):
        if not reason:
            groups.setdefault(np.packbits(labels[:, c] >= 0).tobytes(), []).append(c)
    return list(groups.values())


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / spread of the features that are there: float64 [p] each; 0 for a feature without spread."""
    blocks = [features[start : start + _BLOCK] for start in range(0, len(features), _BLOCK)]
    p = features.shape[1]
    n = sum((~np.isnan(block)).sum(0) for block in blocks) + np.zeros(p)
    at_least_one = np.maximum(n, 1)
    total = sum(np.nansum(block, axis=0, dtype=np.float64) for block in blocks) + np.zeros(p)
    mean = _as_stored(total / at_least_one)
    squares = sum(np.nansum((block - mean) ** 2, axis=0) for block in blocks) + np.zeros(p)
    variance = squares / at_least_one
    has_spread = variance > 1e-10 * (1 + mean**2)  # rounding leaves a constant a relative spread
    return mean, _as_stored(has_spread / np.sqrt(np.where(has_spread, variance, 1.0)))


def _as_stored(values: np.ndarray) -> np.ndarray:
    """Rounded as in the run's file, so that a run and its file give the same scores."""
    return values.astype(np.float32).astype(np.float64)
