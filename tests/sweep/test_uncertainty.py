"""The intervals of a sweep: their formula by hand, and a small simulation of how often they hold the truth."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage
from kacl_jax.evaluation.predictions import SavedPredictions
from kacl_jax.sweep import compare, measure, uncertainty
from kacl_jax.sweep.hyper import Arm, Point
from kacl_jax.sweep.uncertainty import RunVariance

REPO = Path(__file__).resolve().parents[2]
B = 300


def simulated(folds: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Values [folds seeds] near 0 and their resamples [folds seeds B]."""
    rng = np.random.default_rng(folds * seeds)
    values = 0.02 + 0.01 * rng.normal(size=(folds, seeds))
    shared = 0.01 * rng.normal(size=(folds, 1, B))
    return values, values[..., None] + shared + 0.004 * rng.normal(size=(folds, seeds, B))


def test_the_interval_is_the_formulas_by_hand() -> None:
    folds, seeds = 3, 2
    values, draws = simulated(folds, seeds)
    between = [np.var(values[f], ddof=1) for f in range(folds)]
    by_patients = [
        sum(np.var(draws[f, s] - draws[f].mean(axis=0)) for s in range(seeds)) / (seeds - 1)
        for f in range(folds)
    ]
    runs = np.mean(between) - np.mean(by_patients)
    assert runs > 0
    squared = np.var([draws[:, :, b].mean() for b in range(B)]) + runs / (folds * seeds)
    uncertain = (runs + np.mean(between)) / 2 / (folds * seeds)
    degrees = folds * (seeds - 1) * (squared / uncertain) ** 2
    found = uncertainty.estimate(values, draws, None)
    law = stats.t(degrees, loc=values.mean(), scale=np.sqrt(squared))
    assert found.ci95 == pytest.approx(law.interval(0.95))
    assert found.p == pytest.approx(2 * min(law.cdf(0), law.sf(0)))
    assert found.note == ""


def test_one_seed_borrows_the_runs_part_and_says_so() -> None:
    values, draws = simulated(3, 1)
    lent = RunVariance(total=3e-4, patients=1e-4, degrees=20)
    alone = uncertainty.estimate(values, draws, None)
    helped = uncertainty.estimate(values, draws, lent)
    assert (alone.p, alone.note) == (None, uncertainty.PATIENTS_ONLY)
    assert helped.note == uncertainty.BORROWED
    assert helped.p is not None
    assert alone.ci95 is not None
    assert helped.ci95 is not None
    assert np.ptp(helped.ci95) > np.ptp(alone.ci95)
    own = uncertainty.estimate(*simulated(3, 3), None)
    assert uncertainty.estimate(*simulated(3, 3), lent) == own  # its own seeds come first


def test_noise_of_patients_is_not_counted_as_noise_of_runs() -> None:
    """Runs that differ only by what these patients make of them have no variance of their own."""
    rng = np.random.default_rng(0)
    of_patient = rng.normal(size=(200, 4, 250))  # [folds seeds patients]
    weights = measure.patient_weights(0, 250, B)[:, 1:]
    values, draws = of_patient.mean(axis=2), of_patient @ weights / 250
    variance = uncertainty.run_variance(values, draws)
    assert variance is not None
    assert variance.total == pytest.approx(1 / 250, rel=0.1)
    assert abs(variance.total - variance.patients) < 0.1 * variance.total


def test_the_simulations_resamples_vary_as_those_of_real_scores() -> None:
    rng = np.random.default_rng(1)
    positive = np.arange(300) < 60
    scores = rng.normal(size=300) + positive
    area, influence = coverage.auroc_and_influence(scores, positive)
    none = np.zeros(0, int)
    part = SavedPredictions(
        *(("Mass",), (), np.arange(300), positive.astype(int)[:, None], scores[:, None]),
        *(none, none, np.zeros(0), np.zeros(0)),
    )
    weights = measure.patient_weights(0, 300, 2000)
    real = measure.resampled_ranking(part, weights)["auroc"]
    assert area == pytest.approx(real.value)
    assert np.std(influence @ weights[:, 1:]) == pytest.approx(np.std(real.draws), rel=0.03)


def test_equal_arms_seldom_differ_and_a_better_one_is_seen() -> None:
    """Forty repetitions, so the bounds are wide: the full simulation is `benchmarks.coverage`."""
    rates = coverage.measure_rates(40, 0.006, seed=2)
    after = np.array([shares for (*_, rule), shares in rates.items() if rule == "after"])
    rejects, covers, sees, covers_auroc = after.T
    assert 0.025 < rejects.mean() < 0.1
    np.testing.assert_allclose(covers, 1 - rejects)
    assert (sees > rejects).all()
    assert covers_auroc.mean() > 0.9
    for folds in (3, 5):  # crosswise resamples of seeds and patients see less
        assert rates[folds, 3, "after"][2] > 1.5 * rates[folds, 3, "before"][2]


def test_an_arm_compared_with_itself_under_another_seed_makes_no_claim(tmp_path: Path) -> None:
    """The committed scores of *focal only*: seed 1 against seed 0. The arm's three seeds lend the runs' part."""
    with tarfile.open(REPO / "docs/evidence/nih/focal.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    focal, again = Arm("focal"), Arm("again", against=("focal",))
    runs = {}
    for fold in range(5):
        for seed in range(3):
            files = measure.read_files(tmp_path / f"focal/fold{fold}-seed{seed}")
            runs[Point(focal, fold, seed)] = measure.measure_run(files, resamples=B)
        runs[Point(again, fold, 0)] = runs[Point(focal, fold, 1)]
    rows = compare.compare_arms([focal, again], runs)
    pairs = [
        row.difference for row in rows if row.difference and row.difference.baseline == "focal"
    ]
    assert len(pairs) == len(measure.METRICS)
    for pair in pairs:
        assert pair.estimate.note == uncertainty.BORROWED
        assert pair.estimate.p is not None
        assert pair.estimate.p > 0.05
