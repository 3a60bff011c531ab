"""AUPRC against scikit-learn and against its definition, and that AUROC is what it was without it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from test_metrics import scores_labels_patients, tied_rows

from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import bootstrap
from kacl_jax.evaluation.metrics.ranking import Ranking


@settings(max_examples=150, deadline=None)
@given(tied_rows, st.integers(0, 2**31))
def test_a_bootstrap_replicate_is_sklearns_weighted_average_precision(
    rows: list[tuple[int, int, int]], seed: int
) -> None:
    scores, labels, patient = np.array(rows, float).T
    cluster = patient.astype(int)
    counts = np.random.default_rng(seed).integers(0, 3, (5, 6)).astype(float)
    values = Ranking(scores, labels, cluster, 5).areas(counts, precision=True)[:, 1]
    for column, value in enumerate(values):
        weights = counts[cluster, column]
        if len(np.unique(labels[weights > 0])) < 2:
            assert np.isnan(value)
        else:
            expected = average_precision_score(labels, scores, sample_weight=weights)
            assert value == pytest.approx(expected, abs=1e-12)


def by_definition(labels: np.ndarray, scores: np.ndarray) -> float:
    """Over the positives, the mean precision among the images that score at least as high."""
    return float(np.mean([labels[scores >= s].mean() for s in scores[labels == 1]]))


def test_the_interval_equals_resampling_patients_by_hand() -> None:
    scores, labels, patients = scores_labels_patients(0, patients=60)
    table = metrics.ranking_tables(scores, labels, patients, resamples=4000)[1]
    rng, members = np.random.default_rng(5), [np.flatnonzero(patients == p) for p in set(patients)]
    replicates = []
    for _ in range(1500):
        rows = np.concatenate([members[i] for i in rng.integers(60, size=60)])
        replicates.append([by_definition(labels[rows, c], scores[rows, c]) for c in range(2)])
    by_hand = np.array(replicates)
    for estimate, draws in [
        *zip(table.findings, by_hand.T, strict=True),
        (table.mean, by_hand.mean(1)),
    ]:
        assert estimate.ci95 == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.02)
    for c, estimate in enumerate(table.findings):
        expected = average_precision_score(labels[:, c], scores[:, c])
        assert estimate.value == pytest.approx(expected, abs=1e-12)
        assert estimate.counts == {"n_pos": labels[:, c].sum(), "n_neg": (1 - labels[:, c]).sum()}


def test_order_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, patients = scores_labels_patients(4, patients=40)
    first = metrics.ranking_tables(scores, labels, patients, resamples=100)
    assert first[0] == metrics.auroc_table(scores, labels, patients, resamples=100)
    order = np.random.default_rng(0).permutation(len(scores))
    shuffled = (array[order] for array in (scores, labels, patients))
    assert metrics.ranking_tables(*shuffled, resamples=100) == first
    monkeypatch.setattr(bootstrap, "_CHUNK", 7)
    assert metrics.ranking_tables(scores, labels, patients, resamples=100) == first


def test_random_scores_reach_the_prevalence() -> None:
    rng, n = np.random.default_rng(0), 40_000
    labels = (rng.random((n, 2)) < [0.05, 0.3]).astype(np.uint8)
    table = metrics.ranking_tables(rng.random((n, 2)), labels, np.arange(n), resamples=0)[1]
    values = [estimate.value for estimate in table.findings]
    assert values == pytest.approx(labels.mean(axis=0), abs=0.01)


def test_one_class_is_nan_in_both_with_the_same_reason() -> None:
    scores, labels, patients = scores_labels_patients(5, patients=30, findings=3)
    labels[:, 1], labels[:, 2] = 0, 1
    for table in metrics.ranking_tables(scores, labels, patients, resamples=50):
        assert [e.reason for e in table.findings] == ["", "no positive", "no negative"]
        assert np.isnan([e.value for e in table.findings]).tolist() == [False, True, True]
        assert table.mean.counts["n_findings"] == 1
    nobody = metrics.ranking_tables(scores[:0], labels[:0], patients[:0], resamples=50)
    assert {e.reason for table in nobody for e in table.findings} == {"no image"}


def test_an_interval_of_auprc_stays_within_0_and_1() -> None:
    """Percentiles moved by their bias may leave it: few positives, and ones that are almost parted."""
    random = np.random.default_rng(0)
    ends = []
    for _ in range(8):
        for n, positives, lift in ((300, 3, 0.0), (100, 20, 3.5)):
            labels = (np.arange(n) < positives).astype(int)[:, None]
            scores = random.normal(size=(n, 1)) + lift * labels
            _, auprc = metrics.ranking_tables(scores, labels, np.arange(n), resamples=300)
            ends += auprc.mean.ci95 or ()  # none where all is parted in every resample
    assert (min(ends), max(ends)) == (0, 1)


def test_a_paired_difference_loses_what_both_scores_share() -> None:
    """Its interval is far narrower than those of the two values, and a score differs from itself by nothing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (300, 2))
    scores = labels + rng.normal(0, 2, labels.shape)
    better = scores + 0.1 * labels
    patients = np.arange(300) // 2
    old, new = (
        metrics.ranking_tables(values, labels, patients, resamples=200)
        for values in (scores, better)
    )
    paired = metrics.ranking_differences(better, scores, labels, patients, resamples=200)
    for difference, one, other in zip(paired, new, old, strict=True):
        for row, high, low in zip(difference.rows, one.rows, other.rows, strict=True):
            assert row.value == pytest.approx(high.value - low.value)
            assert np.ptp(row.ci95) < 0.3 * np.ptp(low.ci95)
            assert row.ci95[0] <= row.value <= row.ci95[1]
    none = metrics.ranking_differences(scores, scores, labels, patients, resamples=20)[0]
    assert none.mean.value == 0
    assert none.mean.ci95 is None
