"""Calibration of probabilities: Brier score, expected calibration error, reliability curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from kacl_jax.evaluation.metrics.bootstrap import RESAMPLES, Estimate, Table, ratio_tables

N_BINS = 10  # of equal mass: each holds about the same number of images


@dataclass(frozen=True)
class Bin:
    """One point of a reliability curve: n images with nearly the same probability."""

    predicted: float  # their mean probability
    observed: float  # the share of them that has the finding
    n: int


@dataclass(frozen=True)
class Calibration:
    """brier: mean squared error of the probability. ece: Σ over bins of n/N · |observed − predicted|."""

    brier: Table
    ece: Table
    reliability: tuple[tuple[Bin, ...], ...]  # per finding


def measure_calibration(
    probability: Float[np.ndarray, "n c"],
    labels: Shaped[np.ndarray, "n c"],
    patients: Int[np.ndarray, "n"],
    *,
    resamples: int = RESAMPLES,
) -> Calibration:
    """Calibration per finding and mean. Args: probability in [0, 1]; labels 1, 0, or −1 where unknown, of any dtype.

    An unknown label counts in no number.

    The Brier score has a patient-cluster interval. The ECE has none: it is a sum of absolute differences, so the noise
    of resampling raises it (on 25,596 well calibrated images 97.5 % of the resamples lie above the value).
    """
    # One order of summation, whatever the order of the rows.
    order = np.lexsort((*probability.T, *labels.T, patients))
    probability, labels, patients = probability[order], labels[order], patients[order]
    known: np.ndarray = np.asarray(labels >= 0)
    reasons = ["" if any_known else "no image" for any_known in np.asarray(known.any(0)).tolist()]
    squared_error = np.where(known, (probability - labels) ** 2, 0.0)
    reliability = tuple(
        reliability_curve(probability[rows, i], labels[rows, i]) for i, rows in enumerate(known.T)
    )
    (brier,) = ratio_tables(squared_error[:, :, None], known, patients, reasons, resamples)
    return Calibration(brier, _ece_table(reliability), reliability)


def reliability_curve(
    probability: Float[np.ndarray, "n"], labels: Shaped[np.ndarray, "n"]
) -> tuple[Bin, ...]:
    """Bins of equal mass by rank, ascending; equal probabilities share the bin of the lowest of their ranks.

    Args: labels 0 or 1, of any dtype. Bins that ties leave empty are omitted.
    """
    order = np.lexsort((labels, probability))
    probability, labels = probability[order], labels[order]
    bin_index = (
        N_BINS * np.searchsorted(probability, probability, side="left") // max(len(labels), 1)
    )
    bin_counts = np.bincount(bin_index, minlength=N_BINS)
    predicted, observed = (np.bincount(bin_index, x, N_BINS) for x in (probability, labels))
    return tuple(
        Bin(
            float(predicted[b] / bin_counts[b]),
            float(observed[b] / bin_counts[b]),
            int(bin_counts[b]),
        )
        for b in np.flatnonzero(bin_counts)
    )


def _ece_table(reliability: tuple[tuple[Bin, ...], ...]) -> Table:
    ci_reason = "resampling raises it"

    def estimate(bins: tuple[Bin, ...]) -> Estimate:
        n = sum(b.n for b in bins)
        if not n:
            return Estimate(float("nan"), None, {"n": 0}, "no image")
        gap = sum(b.n * abs(b.observed - b.predicted) for b in bins)
        return Estimate(gap / n, None, {"n": n}, ci_reason=ci_reason)

    findings = tuple(map(estimate, reliability))
    values = [e.value for e in findings if not e.reason]
    counts = {"n": sum(e.counts["n"] for e in findings), "n_findings": len(values)}
    if not values:
        return Table(findings, Estimate(float("nan"), None, counts, "no finding could be scored"))
    return Table(findings, Estimate(float(np.mean(values)), None, counts, ci_reason=ci_reason))
