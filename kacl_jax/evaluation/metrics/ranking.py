"""How well scores rank images: area under the ROC curve and average precision."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped
from scipy import sparse

from kacl_jax.evaluation.metrics.bootstrap import (
    RESAMPLES,
    Estimate,
    Table,
    build_table,
    clip_interval_to_unit,
    divide,
    index_patients,
    remove_bias,
    resample,
)


def missing_class_reason(n_pos: int, n_neg: int) -> str:
    """Why AUROC and operating point are undefined without images of both classes; "" where both are there."""
    if n_pos and n_neg:
        return ""
    return "no image" if not n_pos + n_neg else "no positive" if not n_pos else "no negative"


def auroc(
    scores: Float[np.ndarray, "n"],
    labels: Shaped[np.ndarray, "n"],
    weights: Float[np.ndarray, "n"] | None = None,
) -> float:
    """Area under the ROC curve, a tie between a positive and a negative counting one half.

    Args: scores finite; labels 1, 0, or −1 where unknown, of any dtype; weights ≥ 0 (default 1).
    Returns: Σ w_i w_j ([s_i > s_j] + ½ [s_i = s_j]) / Σ w_i w_j over positives i and negatives j;
    NaN where either class weighs nothing. Raises ValueError on a score that is not finite.
    """
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    weights = weights * _is_known(scores, labels)
    positive = np.asarray(labels) == 1
    values, level = np.unique(np.asarray(scores), return_inverse=True)
    w_pos = np.bincount(level, weights * positive, len(values))
    w_neg = np.bincount(level, weights * ~positive, len(values))
    total = w_pos.sum() * w_neg.sum()
    if not total > 0:
        return float("nan")
    return float(w_pos @ (np.cumsum(w_neg) - 0.5 * w_neg) / total)


def auroc_table(
    scores: Float[np.ndarray, "n c"],
    labels: Shaped[np.ndarray, "n c"],
    patients: Int[np.ndarray, "n"],
    *,
    resamples: int = RESAMPLES,
) -> Table:
    """AUROC per finding and mean, with patient-cluster intervals.

    Args: labels 1, 0, or −1 where unknown, of any dtype. An unknown label counts in no number.
    Returns: counts n_pos and n_neg are images (summed over findings in the mean).
    """
    return _tables(scores, labels, patients, resamples, precision=False)[0]


def ranking_tables(
    scores: Float[np.ndarray, "n c"],
    labels: Shaped[np.ndarray, "n c"],
    patients: Int[np.ndarray, "n"],
    *,
    resamples: int = RESAMPLES,
) -> tuple[Table, Table]:
    """AUROC and AUPRC per finding and mean from the same resamples; arguments as in `auroc_table`.

    AUPRC is average precision: Σ over distinct scores, descending, of the gain in recall times the
    precision at that score, not interpolated. Random scores reach the prevalence, which stands beside it; beside
    the mean stands the mean over the same findings. Like AUROC it is undefined where a class is absent, so that both
    means are over the same findings. `remove_bias` is applied to its resamples, so that the interval is that of other
    test sets of this size.
    """
    auroc_result, auprc_result = _tables(scores, labels, patients, resamples, precision=True)
    prevalences = [_prevalence(estimate) for estimate in auprc_result.findings]
    defined = [
        prevalence
        for prevalence, estimate in zip(prevalences, auprc_result.findings, strict=True)
        if estimate.is_defined
    ]
    mean_prevalence = float(np.mean(defined)) if defined else math.nan

    def complete(estimate: Estimate, prevalence: float) -> Estimate:
        ci95 = clip_interval_to_unit(estimate.ci95)
        return replace(estimate, ci95=ci95, prevalence=prevalence)

    findings = tuple(map(complete, auprc_result.findings, prevalences))
    return auroc_result, Table(findings, complete(auprc_result.mean, mean_prevalence))


def ranking_differences(
    scores: Float[np.ndarray, "n c"],
    baseline: Float[np.ndarray, "n c"],
    labels: Shaped[np.ndarray, "n c"],
    patients: Int[np.ndarray, "n"],
    *,
    resamples: int = RESAMPLES,
) -> tuple[Table, Table]:
    """AUROC and AUPRC of `scores` minus those of `baseline`, which scores the same images; else as `ranking_tables`.

    Paired: both are computed on the same resamples, so that what they have in common leaves the interval.
    """
    (auroc, auprc), (counts, reasons, n_patients) = _draws(
        scores, labels, patients, resamples, precision=True
    )
    (auroc_0, auprc_0), _ = _draws(baseline, labels, patients, resamples, precision=True)
    return tuple(  # type: ignore[return-value]
        build_table(
            of_scores[0] - of_baseline[0],
            of_scores[1] - of_baseline[1],
            counts,
            reasons,
            n_patients,
        )
        for of_scores, of_baseline in ((auroc, auroc_0), (auprc, auprc_0))
    )


def _prevalence(estimate: Estimate) -> float:
    n_pos, n_neg = estimate.counts["n_pos"], estimate.counts["n_neg"]
    return n_pos / (n_pos + n_neg) if n_pos + n_neg else math.nan


def _tables(
    scores: Float[np.ndarray, "n c"],
    labels: Shaped[np.ndarray, "n c"],
    patients: Int[np.ndarray, "n"],
    resamples: int,
    *,
    precision: bool,
) -> tuple[Table, ...]:
    by_metric, rest = _draws(scores, labels, patients, resamples, precision=precision)
    return tuple(build_table(values, draws, *rest) for values, draws in by_metric)


def _draws(
    scores: Float[np.ndarray, "n c"],
    labels: Shaped[np.ndarray, "n c"],
    patients: Int[np.ndarray, "n"],
    resamples: int,
    *,
    precision: bool,
) -> tuple[
    list[tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c resamples"]]],
    tuple[list[dict[str, int]], list[str], int],
]:
    """Values and draws of each metric, and the other arguments of `build_table`."""
    patient_index, n_patients = index_patients(patients)
    rankings = [
        Ranking(scores[:, i], labels[:, i], patient_index, n_patients)
        for i in range(labels.shape[1])
    ]

    def replicate(counts: Float64[np.ndarray, "patients k"]) -> Float64[np.ndarray, "c k t"]:
        return np.stack([ranking.areas(counts, precision=precision) for ranking in rankings])

    counts = [{"n_pos": int(ranking.n_pos), "n_neg": int(ranking.n_neg)} for ranking in rankings]
    values = replicate(np.ones((n_patients, 1)))[:, 0, :]
    reasons = [missing_class_reason(ranking.n_pos, ranking.n_neg) for ranking in rankings]
    draws = resample(replicate, n_patients, resamples)
    if precision:
        draws[:, :, 1] = remove_bias(draws[:, :, 1], values[:, 1])
    by_metric = [(values[:, i], draws[:, :, i]) for i in range(values.shape[1])]
    return by_metric, (counts, reasons, n_patients)


class Ranking:
    """One finding's ranking as sparse matrices [scores patients]: a resample takes a few matrix products.

    The rows are the distinct scores of the positives, ascending. `positives` counts each row's positives per
    patient; `negatives` the negatives with a score above the previous row's and at most this row's;
    `tied_negatives` those of them with exactly this row's score.
    """

    def __init__(
        self,
        scores: Float[np.ndarray, "n"],
        labels: Shaped[np.ndarray, "n"],
        patient_index: Int[np.ndarray, "n"],
        n_patients: int,
    ) -> None:
        known = _is_known(scores, labels)
        scores, patient_index = scores[known], patient_index[known]
        positive = labels[known] == 1
        levels, positive_row = np.unique(scores[positive], return_inverse=True)
        negatives, negative_patient = scores[~positive], patient_index[~positive]
        negative_row = np.searchsorted(levels, negatives, side="left")
        has_row = negative_row < len(levels)  # the other negatives score above every positive
        is_tied = has_row.copy()
        is_tied[has_row] = levels[negative_row[has_row]] == negatives[has_row]

        def count_matrix(rows: np.ndarray, columns: np.ndarray) -> sparse.csr_array:
            shape = (len(levels), n_patients)
            return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr()

        self.positives = count_matrix(positive_row, patient_index[positive])
        self.negatives = count_matrix(negative_row[has_row], negative_patient[has_row])
        self.tied_negatives = count_matrix(negative_row[is_tied], negative_patient[is_tied])
        self.pos_per_patient = np.bincount(patient_index[positive], minlength=n_patients).astype(
            float
        )
        self.neg_per_patient = np.bincount(negative_patient, minlength=n_patients).astype(float)
        self.n_pos, self.n_neg = int(positive.sum()), len(negatives)

    def areas(
        self, counts: Float64[np.ndarray, "patients k"], *, precision: bool
    ) -> Float64[np.ndarray, "k 1+{precision}"]:
        """AUROC, and average precision if wanted; NaN where undefined.

        counts: how often each resample contains each patient. All sums are of
        multiples of one half, so they are exact.
        """
        all_pos, all_neg = self.pos_per_patient @ counts, self.neg_per_patient @ counts
        positives, tied_negatives = self.positives @ counts, self.tied_negatives @ counts
        negatives_up_to = np.cumsum(self.negatives @ counts, axis=0)
        won_pairs = np.einsum("gk,gk->k", positives, negatives_up_to - 0.5 * tied_negatives)
        roc = divide(won_pairs, all_pos * all_neg)
        if not precision:
            return roc[:, None]
        # Positives with this score or a higher one.
        true_positives = all_pos - np.cumsum(positives, axis=0) + positives
        false_positives = all_neg - negatives_up_to + tied_negatives
        precision_values = np.divide(
            true_positives,
            true_positives + false_positives,
            out=np.zeros_like(true_positives),
            where=positives > 0,
        )
        precision_sum = np.einsum("gk,gk->k", positives, precision_values)
        return np.stack(
            [roc, np.where(all_neg > 0, divide(precision_sum, all_pos), np.nan)], axis=1
        )


def _is_known(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which labels are 0 or 1. Raises ValueError on a score that is not finite and on any label but 1, 0 and −1."""
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError("labels must be 1, 0 or -1")
    return np.asarray(labels) >= 0
