"""The ridge regressions: scikit-learn's, with few rows and with many, and nothing of what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from kacl_jax.fusion import ridge


def table(n: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [n p], labels [n 2] that depend on the first two, and patients with three rows each."""
    rng = np.random.default_rng(seed)
    features = rng.normal(3, 2, (n, p)).astype(np.float32)
    noise = rng.normal(0, 1, (n, 2))
    labels = (features[:, :2] - 3 + noise > 1).astype(np.int8)
    return features, labels, np.arange(n) // 3


@pytest.mark.parametrize(("n", "p"), [(90, 7), (40, 60)])
def test_the_regression_is_scikit_learns(n: int, p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "_BLOCK", 16)
    features, labels, patients = table(n, p)
    labels[::9, 1] = -1  # unknown
    found = ridge.fit(features, labels, patients)
    z = (features - features.mean(0, dtype=np.float64)) / features.std(0, dtype=np.float64)
    assert np.abs(z).max() < ridge.Z_CLIP
    for c in range(2):
        known = labels[:, c] >= 0
        expected = SklearnRidge(alpha=known.sum() * found.penalty)
        expected.fit(z[known], labels[known, c])
        np.testing.assert_allclose(found.coef[c], expected.coef_, atol=1e-6)
        np.testing.assert_allclose(found.scores(features)[:, c], expected.predict(z), atol=1e-5)


def test_the_penalty_is_the_one_that_ranks_other_patients_best() -> None:
    """By scikit-learn, fold by fold; strong where the features say nothing, weak where they say much."""
    features, labels, patients = table(120, 30)
    fold = ridge.patient_folds(patients)
    assert all(len(set(fold[patients == patient])) == 1 for patient in patients)
    found, held_out = ridge.fit_with_held_out(features, labels, patients)
    z = found.standardise(features)
    means = []
    for penalty in ridge.PENALTIES:
        scores = np.zeros(labels.shape)
        for k in range(ridge.FOLDS):
            rest = fold != k
            model = SklearnRidge(alpha=rest.sum() * penalty).fit(z[rest], labels[rest])
            scores[~rest] = model.predict(z[~rest])
        means.append(np.mean([ridge.auroc(scores[:, c], labels[:, c]) for c in range(2)]))
        if penalty == found.penalty:
            np.testing.assert_allclose(held_out, scores, atol=1e-8)
    assert found.penalty == ridge.PENALTIES[int(np.argmax(means))]


def test_a_finding_with_few_examples_has_no_regression() -> None:
    features, labels, patients = table(60, 5)
    labels[:, 1] = 0
    labels[:4, 1] = 1
    found = ridge.fit(features, labels, patients)
    assert found.reasons == ("", "4 positives in the training part, 5 are needed")
    scores = found.scores(features)
    assert np.isfinite(scores[:, 0]).all()
    assert np.isnan(scores[:, 1]).all()
    labels[4, 1] = 1
    assert ridge.fit(features, labels, patients).reasons == ("", "")


def test_what_is_missing_adds_nothing() -> None:
    features, labels, patients = table(60, 6)
    features[5:20, 4:] = np.nan
    features[20] = np.nan
    found = ridge.fit(features, labels, patients)
    np.testing.assert_allclose(found.mean, np.nanmean(features, 0), rtol=1e-5)
    scores = found.scores(features)
    assert np.isnan(scores[20]).all()
    shares = found.shares(features[5])
    assert np.isnan(shares[:, 4:]).all()
    np.testing.assert_allclose(scores[5], shares[:, :4].sum(1) + found.intercept)


def test_one_image_has_the_same_score_to_the_bit_as_among_others() -> None:
    features, labels, patients = table(50, 200)
    found = ridge.fit(features, labels, patients)
    together = found.scores(features)
    alone = np.concatenate([found.scores(row[None]) for row in features])
    np.testing.assert_array_equal(together, alone)
