"""Decisions and calibration against scikit-learn and loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, precision_score, recall_score

from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics.calibration import N_BINS, reliability_curve


def probabilities_labels_patients(seed: int, patients: int = 80) -> tuple[np.ndarray, ...]:
    """Probabilities of two findings, the second one overconfident; labels; patients with 1 … 4 images."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    chance = rng.beta(2, 3, (patients, 2))[patient]
    labels = (rng.random(chance.shape) < chance).astype(np.uint8)
    probability = np.stack([chance[:, 0], np.clip(2 * chance[:, 1] - 0.5, 0, 1)], axis=1)
    return probability, labels, patient * 3 + 5


def resampled_percentiles(value_of, patients: np.ndarray, resamples: int = 1500) -> np.ndarray:
    """Percentiles of value_of(rows) over resamples of whole patients, which copy each image as often as drawn."""
    rng, members = np.random.default_rng(5), [np.flatnonzero(patients == p) for p in set(patients)]
    draws = [
        value_of(
            np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        )
        for _ in range(resamples)
    ]
    return np.percentile(draws, [2.5, 97.5])


def test_decisions_equal_sklearns() -> None:
    probability, labels, patients = probabilities_labels_patients(0)
    predicted = probability >= [0.4, 0.3]
    tables = metrics.decision_tables(predicted, labels, patients, ["", ""], resamples=4000)
    oracle = {
        "sensitivity": lambda y, p: recall_score(y, p),
        "specificity": lambda y, p: recall_score(y, p, pos_label=0),
        "ppv": lambda y, p: precision_score(y, p),
        "npv": lambda y, p: precision_score(y, p, pos_label=0),
    }
    denominators = {
        "sensitivity": labels == 1, "specificity": labels == 0, "ppv": predicted, "npv": ~predicted,
    }  # fmt: skip
    assert tuple(tables) == metrics.DECISION_METRICS
    for name, table in tables.items():
        for c, estimate in enumerate(table.findings):
            assert estimate.value == pytest.approx(oracle[name](labels[:, c], predicted[:, c]))
            assert estimate.counts == {"n": denominators[name][:, c].sum()}
    for name in ("specificity", "ppv"):  # slow with scikit-learn, so by counting
        member, yes = denominators[name][:, 0], (labels == predicted)[:, 0]
        expected = resampled_percentiles(
            lambda rows, m=member, y=yes: y[rows][m[rows]].mean(), patients
        )
        assert tables[name].findings[0].ci95 == pytest.approx(expected, abs=0.02)


def test_what_was_never_predicted_has_no_predictive_value() -> None:
    labels = np.array([[1, 1], [0, 1], [1, 1], [0, 1]], np.uint8)
    nobody = np.zeros((4, 2), bool)
    tables = metrics.decision_tables(nobody, labels, np.arange(4), ["", ""], resamples=20)
    assert tables["ppv"].findings[0].reason == "predicted for no image"
    assert tables["npv"].findings[0].value == 0.5
    assert tables["specificity"].findings[1].reason == "no negative"
    every = metrics.decision_tables(~nobody, labels, np.arange(4), ["", "why"], resamples=20)
    assert every["npv"].findings[0].reason == "predicted for every image"
    for table in every.values():  # the second finding has no threshold
        assert (table.findings[1].reason, table.findings[1].counts) == ("why", {"n": 0})


def test_the_brier_score_equals_sklearns_and_its_interval_resampling_by_hand() -> None:
    probability, labels, patients = probabilities_labels_patients(1)
    brier = metrics.measure_calibration(probability, labels, patients, resamples=4000).brier
    squares = (probability - labels) ** 2
    for c, estimate in enumerate(brier.findings):
        expected = brier_score_loss(labels[:, c], probability[:, c])
        assert estimate.value == pytest.approx(expected, abs=1e-12)
        expected = resampled_percentiles(lambda rows, c=c: squares[rows, c].mean(), patients)
        assert estimate.ci95 == pytest.approx(expected, abs=0.006)
    assert brier.mean.value == pytest.approx(squares.mean(), abs=1e-12)


def test_the_reliability_curve_equals_sklearns_quantile_bins() -> None:
    rng = np.random.default_rng(2)
    probability, labels = rng.random(1000), rng.integers(0, 2, 1000)
    bins = reliability_curve(probability, labels)
    observed, predicted = calibration_curve(labels, probability, n_bins=N_BINS, strategy="quantile")
    assert [b.observed for b in bins] == pytest.approx(observed, abs=1e-12)
    assert [b.predicted for b in bins] == pytest.approx(predicted, abs=1e-12)
    assert [b.n for b in bins] == [100] * N_BINS


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1)), min_size=1, max_size=60))
def test_equal_probabilities_share_a_bin_of_equal_mass(rows: list[tuple[int, int]]) -> None:
    probability, labels = np.array(rows, float).T
    probability /= 20
    bins: dict[int, list[tuple[float, float]]] = {}
    for p, y in zip(probability, labels, strict=True):
        lower = sum(q < p for q in probability)
        bins.setdefault(int(N_BINS * lower / len(rows)), []).append((p, y))
    expected = [(*np.mean(bins[b], axis=0), len(bins[b])) for b in sorted(bins)]
    actual = reliability_curve(probability, labels)
    np.testing.assert_allclose([(b.predicted, b.observed, b.n) for b in actual], expected)
    ece = sum(n * abs(y - p) for p, y, n in expected) / len(rows)
    table = metrics.measure_calibration(
        probability[:, None], labels[:, None], np.arange(len(rows)), resamples=0
    ).ece
    assert table.findings[0].value == pytest.approx(ece, abs=1e-12)


def test_the_ece_knows_the_overconfident_and_has_no_interval() -> None:
    rng, n = np.random.default_rng(3), 20_000
    chance = rng.beta(2, 3, n)
    labels = (rng.random(n) < chance)[:, None].repeat(2, axis=1)
    probability = np.stack([chance, np.clip(chance + 0.1, 0, 1)], axis=1)
    ece = metrics.measure_calibration(probability, labels, np.arange(n), resamples=10).ece
    assert ece.findings[0].value < 0.02
    assert ece.findings[1].value == pytest.approx(0.1, abs=0.01)
    assert ece.mean.value == pytest.approx(np.mean([e.value for e in ece.findings]), abs=1e-15)
    assert all(e.ci95 is None and e.ci_reason for e in (*ece.findings, ece.mean))


def test_the_order_of_the_rows_changes_no_bit() -> None:
    probability, labels, patients = probabilities_labels_patients(4)
    probability[:, 0] = np.round(probability[:, 0], 1)
    first = metrics.measure_calibration(probability, labels, patients, resamples=50)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(labels))
        shuffled = (array[order] for array in (probability, labels, patients))
        assert metrics.measure_calibration(*shuffled, resamples=50) == first


def test_no_image_is_nan_with_a_reason() -> None:
    nothing = metrics.measure_calibration(np.zeros((0, 2)), np.zeros((0, 2), int), np.zeros(0, int))
    for table in (nothing.brier, nothing.ece):
        assert {e.reason for e in table.findings} == {"no image"}
        assert np.isnan(table.mean.value)
        assert table.mean.reason
    assert nothing.reliability == ((), ())
