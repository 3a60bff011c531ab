"""Estimates with percentile intervals over resamples of whole *patients*.

Images of one patient are not independent. One resample serves all findings, so the interval of a
mean over findings is right although the findings share images. Patients are counted, not copied: a
resample is a column of weights, and a figure of it is a few matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

RESAMPLES = 2000
MAX_LEFT_OUT = 0.1  # share of undefined resamples above which no interval is given
_SEED = 0  # fixed: the same scores have the same intervals
_CHUNK = 32  # resamples at once: few enough for a processor's cache, three times faster than 250


@dataclass(frozen=True)
class Estimate:
    """A figure with its uncertainty. `value` is NaN exactly when `reason` says why."""

    value: float
    ci95: tuple[float, float] | None  # None: `ci_reason` (or `reason`) says why
    counts: dict[str, int]  # what it rests on: n_pos and n_neg, or n; n_findings for a mean
    reason: str = ""
    ci_reason: str = ""
    left_out: int = 0  # resamples in which the figure was undefined


@dataclass(frozen=True)
class Table:
    """One estimate per finding and their unweighted mean over the findings that are defined."""

    findings: tuple[Estimate, ...]
    mean: Estimate


def clusters(patients: np.ndarray) -> tuple[np.ndarray, int]:
    """Patients int [n] → (their numbers from 0, ascending by patient; how many there are)."""
    values, index = np.unique(patients, return_inverse=True)
    return index, len(values)


def divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Elementwise, NaN where the lower one is not positive."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def without_bias(draws: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Resamples float [… B] moved so that the mean of the defined ones is the sample's own figure, float […].

    For a figure that resampling raises by itself: a positive that is drawn twice has its twin at its own rank, so that
    average precision comes out too high, and as much so in a mean over folds, whose interval is narrower.
    """
    defined = np.isfinite(draws)
    mean = divide(np.where(defined, draws, 0.0).sum(-1), defined.sum(-1))
    return draws + (np.asarray(values) - mean)[..., None]


def within_unit(ci95: tuple[float, float] | None) -> tuple[float, float] | None:
    """An interval's ends cut to [0, 1], which draws `without_bias` may leave."""
    return None if ci95 is None else (max(ci95[0], 0.0), min(ci95[1], 1.0))


def resampled(
    replicate: Callable[[np.ndarray], np.ndarray], n_clusters: int, resamples: int
) -> np.ndarray:
    """replicate: counts [patients k] → [c k t]. Returns [c resamples t]; no draws for 1 patient."""
    if n_clusters < 2 or not resamples:
        return replicate(np.ones((n_clusters, 1)))[:, :0, :]
    chunks = [replicate(counts) for counts in _resample_counts(n_clusters, resamples)]
    return np.concatenate(chunks, axis=1)


def _resample_counts(n_clusters: int, resamples: int) -> Iterator[np.ndarray]:
    """Multinomial counts float64 [patients k]: how often each resample draws each patient."""
    rng = np.random.default_rng(_SEED)
    for start in range(0, resamples, _CHUNK):
        k = min(_CHUNK, resamples - start)
        drawn = rng.integers(n_clusters, size=(k, n_clusters))
        flat = np.bincount((drawn * k + np.arange(k)[:, None]).ravel(), minlength=n_clusters * k)
        yield flat.reshape(n_clusters, k).astype(np.float64)


def ratio_tables(
    numerator: np.ndarray,
    denominator: np.ndarray,
    patients: np.ndarray,
    reasons: list[str],
    resamples: int,
) -> tuple[Table, ...]:
    """Ratios of sums: numerator [n c t], denominator [n c] bool, one table per t.

    Count n is the number of rows in the denominator.
    """
    cluster, n_clusters = clusters(patients)
    rows, c, t = numerator.shape
    member = sparse.coo_array((np.ones(rows), (cluster, np.arange(rows))), (n_clusters, rows))
    top = member.tocsr() @ numerator.reshape(rows, c * t).astype(np.float64)
    bottom = member.tocsr() @ denominator.astype(np.float64)

    def replicate(counts: np.ndarray) -> np.ndarray:
        tops = (counts.T @ top).reshape(-1, c, t)
        return divide(tops, np.broadcast_to((counts.T @ bottom)[..., None], tops.shape)).swapaxes(
            0, 1
        )

    values = replicate(np.ones((n_clusters, 1)))[:, 0, :]
    draws = resampled(replicate, n_clusters, resamples)
    counts = [{"n": int(n)} for n in denominator.sum(axis=0)]
    return tuple(table(values[:, i], draws[:, :, i], counts, reasons, n_clusters) for i in range(t))


def table(
    values: np.ndarray,
    draws: np.ndarray,
    counts: list[dict[str, int]],
    reasons: list[str],
    n_clusters: int,
) -> Table:
    """values [c], draws [c resamples] → estimates; the mean is over the defined findings."""
    findings = tuple(
        _estimate(float(value), draw, n, reason, n_clusters)
        for value, draw, n, reason in zip(values, draws, counts, reasons, strict=True)
    )
    defined = np.isfinite(values)
    total = {key: sum(n[key] for n in counts) for key in counts[0]}
    total["n_findings"] = int(defined.sum())
    if not defined.any():
        return Table(findings, Estimate(float("nan"), None, total, "no finding could be scored"))
    # A resample in which one of these findings is undefined would be a mean over other findings.
    mean_draws = draws[defined].mean(axis=0)
    return Table(
        findings, _estimate(float(values[defined].mean()), mean_draws, total, "", n_clusters)
    )


def _estimate(
    value: float, draws: np.ndarray, counts: dict[str, int], reason: str, n_clusters: int
) -> Estimate:
    if not np.isfinite(value):
        return Estimate(float("nan"), None, counts, reason or "undefined")
    usable = draws[np.isfinite(draws)]
    left_out = len(draws) - len(usable)
    if n_clusters < 2:
        why = "one patient only"
    elif not len(draws):
        why = "not resampled"
    elif left_out > MAX_LEFT_OUT * len(draws):
        why = f"undefined in {left_out} of {len(draws)} resamples of patients"
    elif usable.min() == usable.max():
        why = "the same in every resample of patients"
    else:
        low, high = np.percentile(usable, [2.5, 97.5])
        return Estimate(value, (float(low), float(high)), counts, left_out=left_out)
    return Estimate(value, None, counts, ci_reason=why, left_out=left_out)
