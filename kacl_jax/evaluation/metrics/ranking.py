"""How well scores rank images: area under the ROC curve and average precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse

from kacl_jax.evaluation.metrics.bootstrap import (
    RESAMPLES,
    Estimate,
    Table,
    clusters,
    divide,
    resampled,
    table,
    within_unit,
    without_bias,
)


def one_class(n_pos: int, n_neg: int) -> str:
    """Why there is no AUROC and no operating point; "" where there is one."""
    if n_pos and n_neg:
        return ""
    return "no image" if not n_pos + n_neg else "no positive" if not n_pos else "no negative"


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve, a tie between a positive and a negative counting one half.

    Args: scores float [n], finite; labels [n] of 0 and 1; weights float [n] ≥ 0 (default 1).
    Returns: Σ w_i w_j ([s_i > s_j] + ½ [s_i = s_j]) / Σ w_i w_j over positives i and negatives j;
    NaN where either class weighs nothing. Raises ValueError on a score that is not finite.
    """
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    positive = _classes(scores, labels)
    values, group = np.unique(np.asarray(scores), return_inverse=True)
    w_pos = np.bincount(group, weights * positive, len(values))
    w_neg = np.bincount(group, weights * ~positive, len(values))
    total = w_pos.sum() * w_neg.sum()
    if not total > 0:
        return float("nan")
    return float(w_pos @ (np.cumsum(w_neg) - 0.5 * w_neg) / total)


def auroc_table(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    resamples: int = RESAMPLES,
) -> Table:
    """AUROC per finding and mean, with patient-cluster intervals.

    Args: scores float [n c], labels [n c] of 0 and 1, patients int [n].
    Returns: counts n_pos and n_neg are images (summed over findings in the mean).
    """
    return _tables(scores, labels, patients, resamples, precision=False)[0]


def ranking_tables(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    resamples: int = RESAMPLES,
) -> tuple[Table, Table]:
    """AUROC and AUPRC per finding and mean from the same resamples; arguments as in `auroc_table`.

    AUPRC is average precision: Σ over distinct scores, descending, of the gain in recall times the
    precision there, not interpolated. Random scores reach the prevalence. Like AUROC it is
    undefined where a class is absent, so that both means are over the same findings. Its interval is
    `without_bias`: it says what other test sets of this size would give.
    """
    roc, pr = _tables(scores, labels, patients, resamples, precision=True)

    def cut(estimate: Estimate) -> Estimate:
        return replace(estimate, ci95=within_unit(estimate.ci95))

    return roc, Table(tuple(map(cut, pr.findings)), cut(pr.mean))


def _tables(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    resamples: int,
    *,
    precision: bool,
) -> tuple[Table, ...]:
    cluster, n_clusters = clusters(patients)
    ranked = [
        Ranked(scores[:, i], labels[:, i], cluster, n_clusters) for i in range(labels.shape[1])
    ]

    def replicate(counts: np.ndarray) -> np.ndarray:
        return np.stack([r.areas(counts, precision=precision) for r in ranked])

    counts = [{"n_pos": int(r.n_pos), "n_neg": int(r.n_neg)} for r in ranked]
    values = replicate(np.ones((n_clusters, 1)))[:, 0, :]
    reasons = [one_class(r.n_pos, r.n_neg) for r in ranked]
    draws = resampled(replicate, n_clusters, resamples)
    if precision:
        draws[:, :, 1] = without_bias(draws[:, :, 1], values[:, 1])
    return tuple(
        table(values[:, i], draws[:, :, i], counts, reasons, n_clusters)
        for i in range(values.shape[1])
    )


class Ranked:
    """One finding's ranking as sparse matrices over patients: a resample is a few products.

    Rows are the distinct scores that some positive has, ascending. `positives` holds each one's
    positives per patient; `upto` the negatives above the row before and not above this one;
    `tied` those of them that share the row's score.
    """

    def __init__(
        self, scores: np.ndarray, labels: np.ndarray, cluster: np.ndarray, n_clusters: int
    ) -> None:
        positive = _classes(scores, labels)
        levels, row = np.unique(scores[positive], return_inverse=True)
        negatives, owner = scores[~positive], cluster[~positive]
        below = np.searchsorted(levels, negatives, side="left")
        within = below < len(levels)  # the rest scores above every positive
        tied = within.copy()
        tied[within] = levels[below[within]] == negatives[within]

        def count(rows: np.ndarray, columns: np.ndarray) -> sparse.csr_array:
            shape = (len(levels), n_clusters)
            return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr()

        self.positives = count(row, cluster[positive])
        self.upto = count(below[within], owner[within])
        self.tied = count(below[tied], owner[tied])
        self.pos_per_patient = np.bincount(cluster[positive], minlength=n_clusters).astype(float)
        self.neg_per_patient = np.bincount(owner, minlength=n_clusters).astype(float)
        self.n_pos, self.n_neg = int(positive.sum()), len(negatives)

    def areas(self, counts: np.ndarray, *, precision: bool) -> np.ndarray:
        """AUROC, and average precision if wanted: [k 1 or 2]; NaN where undefined.

        counts float64 [patients k]: how often each patient is counted. All sums are of whole or
        half numbers, so exact.
        """
        all_pos, all_neg = self.pos_per_patient @ counts, self.neg_per_patient @ counts
        gain, tied = self.positives @ counts, self.tied @ counts
        upto = np.cumsum(self.upto @ counts, axis=0)
        wins = np.einsum("gk,gk->k", gain, upto - 0.5 * tied)
        roc = divide(wins, all_pos * all_neg)
        if not precision:
            return roc[:, None]
        true = all_pos - np.cumsum(gain, axis=0) + gain  # scored this high or higher
        false = all_neg - upto + tied
        found = np.divide(true, true + false, out=np.zeros_like(true), where=gain > 0)
        recalled = np.einsum("gk,gk->k", gain, found)
        return np.stack([roc, np.where(all_neg > 0, divide(recalled, all_pos), np.nan)], axis=1)


def _classes(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return np.asarray(labels) == 1
