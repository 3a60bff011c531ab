"""Estimates with percentile intervals over resamples of whole *patients*.

Images of one patient are not independent, therefore whole patients are resampled. All findings use the same
resamples, so that the interval of a mean over findings is correct although the findings share images. A resample does
not copy images: it is a column of weights (how often each patient was drawn), and a value for it takes a few matrix
products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped
from scipy import sparse

RESAMPLES = 2000
MAX_UNDEFINED_SHARE = 0.1  # share of undefined resamples above which no interval is given
_SEED = 0  # fixed, so that the same scores always have the same intervals
_CHUNK = (
    32  # resamples computed together: they fit in a processor's cache, three times faster than 250
)


@dataclass(frozen=True)
class Estimate:
    """A value with its uncertainty. If `value` is NaN, `reason` says why; otherwise `reason` is empty."""

    value: float
    # None where there is no interval: `ci_reason` (or `reason`) says why.
    ci95: tuple[float, float] | None
    counts: dict[str, int]  # sample sizes: n_pos and n_neg, or n; also n_findings for a mean
    reason: str = ""
    ci_reason: str = ""
    left_out: int = 0  # number of resamples in which the value is undefined
    # Of an AUPRC only: the share of positive images, which is the AUPRC of random scores. NaN without images.
    prevalence: float | None = None

    @property
    def is_defined(self) -> bool:
        return not math.isnan(self.value)


@dataclass(frozen=True)
class Table:
    """One estimate per finding and their unweighted mean over the findings that are defined."""

    findings: tuple[Estimate, ...]
    mean: Estimate

    @property
    def rows(self) -> tuple[Estimate, ...]:
        """The findings, then the mean: the rows of a table for people."""
        return (*self.findings, self.mean)


def index_patients(patients: Int[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "n"], int]:
    """Patient ids → (index from 0 of each row's patient, in ascending order of id; number of patients)."""
    values, index = np.unique(patients, return_inverse=True)
    return index, len(values)


def divide(
    numerator: Real[np.ndarray, "*shape"], denominator: Real[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Elementwise quotient, NaN where the divisor is not positive."""
    return np.divide(
        numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0
    )


def remove_bias(
    draws: Float[np.ndarray, "*shape resamples"], values: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape resamples"]:
    """Shift resampled values so that the mean of the defined ones equals the sample's value.

    For a value that resampling biases upwards. In average precision, a positive that is drawn twice has its copy at
    the same rank, so that resamples score too high. A mean over folds has the same bias but a narrower interval.
    """
    defined = np.isfinite(draws)
    mean_draw = divide(np.where(defined, draws, 0.0).sum(-1), defined.sum(-1))
    return draws + (np.asarray(values) - mean_draw)[..., None]


def clip_interval_to_unit(ci95: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval clipped to [0, 1], because draws after `remove_bias` may lie outside."""
    return None if ci95 is None else (max(ci95[0], 0.0), min(ci95[1], 1.0))


def resample(
    replicate: Callable[[Float[np.ndarray, "patients k"]], Float[np.ndarray, "c k t"]],
    n_patients: int,
    resamples: int,
) -> Float[np.ndarray, "c resamples t"]:
    """The values of all resamples; of none with fewer than 2 patients.

    replicate: how often each of k resamples contains each patient → their values.
    """
    if n_patients < 2 or not resamples:
        return replicate(np.ones((n_patients, 1)))[:, :0, :]
    chunks = [
        replicate(patient_counts) for patient_counts in _resample_counts(n_patients, resamples)
    ]
    return np.concatenate(chunks, axis=1)


def _resample_counts(n_patients: int, resamples: int) -> Iterator[Float[np.ndarray, "patients k"]]:
    """Multinomial counts, k resamples at a time: how often each one draws each patient."""
    rng = np.random.default_rng(_SEED)
    for start in range(0, resamples, _CHUNK):
        k = min(_CHUNK, resamples - start)
        patient_draws = rng.integers(n_patients, size=(k, n_patients))
        flat = np.bincount(
            (patient_draws * k + np.arange(k)[:, None]).ravel(), minlength=n_patients * k
        )
        yield flat.reshape(n_patients, k).astype(np.float64)


def ratio_tables(
    numerator: Shaped[np.ndarray, "n c t"],
    denominator: Bool[np.ndarray, "n c"],
    patients: Int[np.ndarray, "n"],
    reasons: list[str],
    resamples: int,
) -> tuple[Table, ...]:
    """Ratios of sums, one table per t.

    reasons: for each finding, why its ratio is undefined where the denominator is empty. Count n of an estimate is the
    number of rows in its denominator.
    """
    patient_index, n_patients = index_patients(patients)
    n_rows, c, t = numerator.shape
    patient_matrix = sparse.coo_array(
        (np.ones(n_rows), (patient_index, np.arange(n_rows))), (n_patients, n_rows)
    )
    numerator_sums = patient_matrix.tocsr() @ numerator.reshape(n_rows, c * t).astype(np.float64)
    denominator_sums = patient_matrix.tocsr() @ denominator.astype(np.float64)

    def replicate(counts: Float[np.ndarray, "patients k"]) -> Float[np.ndarray, "c k t"]:
        numerators = (counts.T @ numerator_sums).reshape(-1, c, t)
        return divide(
            numerators, np.broadcast_to((counts.T @ denominator_sums)[..., None], numerators.shape)
        ).swapaxes(0, 1)

    values = replicate(np.ones((n_patients, 1)))[:, 0, :]
    draws = resample(replicate, n_patients, resamples)
    counts = [{"n": int(n)} for n in denominator.sum(axis=0)]
    return tuple(
        build_table(values[:, i], draws[:, :, i], counts, reasons, n_patients) for i in range(t)
    )


def build_table(
    values: Float[np.ndarray, "c"],
    draws: Float[np.ndarray, "c resamples"],
    counts: list[dict[str, int]],
    reasons: list[str],
    n_patients: int,
) -> Table:
    """Estimates per finding and of their mean over the defined findings."""
    findings = tuple(
        _build_estimate(float(value), draw, count, reason, n_patients)
        for value, draw, count, reason in zip(values, draws, counts, reasons, strict=True)
    )
    defined = np.isfinite(values)
    total_counts = {key: sum(count[key] for count in counts) for key in counts[0]}
    total_counts["n_findings"] = int(defined.sum())
    if not defined.any():
        return Table(
            findings, Estimate(float("nan"), None, total_counts, "no finding could be scored")
        )
    # NaN in a resample where one of these findings is undefined: that mean would be over fewer findings.
    mean_draws = draws[defined].mean(axis=0)
    return Table(
        findings,
        _build_estimate(float(values[defined].mean()), mean_draws, total_counts, "", n_patients),
    )


def _build_estimate(
    value: float,
    draws: Float[np.ndarray, "resamples"],
    counts: dict[str, int],
    reason: str,
    n_patients: int,
) -> Estimate:
    if not np.isfinite(value):
        return Estimate(float("nan"), None, counts, reason or "undefined")
    defined = draws[np.isfinite(draws)]
    left_out = len(draws) - len(defined)
    if n_patients < 2:
        ci_reason = "one patient only"
    elif not len(draws):
        ci_reason = "not resampled"
    elif left_out > MAX_UNDEFINED_SHARE * len(draws):
        ci_reason = f"undefined in {left_out} of {len(draws)} resamples of patients"
    elif defined.min() == defined.max():
        ci_reason = "the same in every resample of patients"
    else:
        low, high = np.percentile(defined, [2.5, 97.5])
        return Estimate(value, (float(low), float(high)), counts, left_out=left_out)
    return Estimate(value, None, counts, ci_reason=ci_reason, left_out=left_out)
