"""Intervals and p-values of a mean over folds and seeds, from the values of its runs and their resamples.

Pure numpy. The variance of the mean has two parts. The patients' part is the variance of the mean when the patients of
each fold are resampled. The runs' part is what other seeds would change for the same patients: the variance between
seeds, less what resampling patients alone gives for it, divided by the number of runs. A plain bootstrap of patients
and seeds counts the noise between a run and its patients twice. `benchmarks.coverage` measures how often the intervals
hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import special

from kacl_jax.evaluation import metrics

BORROWED = "one seed; the runs' part of the interval is that of the section's arms with three or more seeds"
PATIENTS_ONLY = "one seed, and no arm of the section has three; the interval covers the patients only, without p"


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval and the two-sided p-value of being 0.

    `note` says why one of them is missing, or from where the runs' part of the interval comes.
    """

    value: float
    ci95: tuple[float, float] | None
    note: str = ""
    p: float | None = None


@dataclass(frozen=True)
class RunVariance:
    """The variance between runs that differ in their seed alone."""

    total: float  # between the values of a fold's runs
    patients: float  # the part of it that comes from having tested these patients and no others
    degrees: float  # degrees of freedom of `total`

    @property
    def runs(self) -> float:
        """What remains of `total` for the runs themselves; not below 0."""
        return max(0.0, self.total - self.patients)

    def times(self, factor: float) -> RunVariance:
        """That of a sum or difference of `factor` independent runs."""
        return RunVariance(factor * self.total, factor * self.patients, self.degrees)


def run_variance(values: np.ndarray, draws: np.ndarray) -> RunVariance | None:
    """From values [folds seeds] and their resamples [folds seeds B]; None with one seed, or where undefined."""
    n_folds, n_seeds = values.shape
    usable = draws[:, :, np.isfinite(draws).all(axis=(0, 1))]
    if n_seeds < 2 or not np.isfinite(values).all() or not usable.size:
        return None
    between = (usable - usable.mean(axis=1, keepdims=True)).var(axis=2).sum(axis=1) / (n_seeds - 1)
    total = float(values.var(axis=1, ddof=1).mean())
    return RunVariance(total, float(between.mean()), n_folds * (n_seeds - 1))


def pool(variances: Iterable[RunVariance | None]) -> RunVariance | None:
    """The mean over arms, each weighted by its degrees of freedom; None without an arm."""
    known = [variance for variance in variances if variance]
    degrees = sum(variance.degrees for variance in known)
    if not degrees:
        return None
    return RunVariance(
        sum(v.total * v.degrees for v in known) / degrees,
        sum(v.patients * v.degrees for v in known) / degrees,
        degrees,
    )


def estimate(values: np.ndarray, draws: np.ndarray, borrowed: RunVariance | None) -> Estimate:
    """The mean of values [folds seeds] with its interval and p-value, from their resamples [folds seeds B].

    The interval is the value ± t · SE. SE² = variance of the mean over resamples + `RunVariance.runs` / (folds ·
    seeds). The degrees of freedom of t follow Satterthwaite: those of `RunVariance` · (SE² / u)². u is what of SE² is
    uncertain. It lies between `RunVariance.runs` and `RunVariance.total`, each / (folds · seeds): with the first alone
    equal arms are rejected too often in `benchmarks.coverage`, with the second too seldom. u is the mean of both.

    borrowed: the variance between runs that holds where there is one seed; None: unknown.
    """
    value, mean_draws = float(values.mean()), draws.mean(axis=(0, 1))
    usable = mean_draws[np.isfinite(mean_draws)]
    undefined = len(mean_draws) - len(usable)
    if not math.isfinite(value):
        return Estimate(math.nan, None, "no finding could be scored in some fold")
    if not len(usable) or undefined > metrics.MAX_UNDEFINED_SHARE * len(mean_draws):
        return Estimate(value, None, f"undefined in {undefined} of {len(mean_draws)} resamples")
    if usable.min() == usable.max():
        p = 1.0 if value == usable[0] == 0 else None
        return Estimate(value, None, "the same in every resample", p)
    own = run_variance(values, draws)
    between = own or borrowed
    runs_part = between.runs / values.size if between else 0.0
    squared_error = float(usable.var()) + runs_part
    degrees = math.inf
    if between and between.total:
        uncertain = (between.runs + between.total) / 2 / values.size
        degrees = between.degrees * (squared_error / uncertain) ** 2
    error = math.sqrt(squared_error)
    margin = float(special.stdtrit(degrees, 0.975)) * error
    note = "" if own else BORROWED if between else PATIENTS_ONLY
    p = 2 * float(special.stdtr(degrees, -abs(value) / error)) if between else None
    return Estimate(value, (value - margin, value + margin), note, p)
