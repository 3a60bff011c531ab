"""Platt scaling against scikit-learn, and what it is for: probabilities that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from kacl_jax.evaluation import metrics, platt


def simulated(n: int, seed: int, prevalence: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 [n] that rank well and are far from calibrated, and labels."""
    random = np.random.default_rng(seed)
    labels = (random.random(n) < prevalence).astype(np.uint8)
    return (0.4 * (labels + random.normal(size=n)) - 0.8).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift, scale", [(0, 1), (500, 1), (0, 1e-3), (-3, 40)])
def test_the_fit_is_scikit_learns(seed: int, shift: float, scale: float) -> None:
    """Platt's targets are weights: each example counts as a positive and as a negative one."""
    logits, labels = simulated(400, seed)
    x = logits.astype(np.float64) * scale + shift
    n_pos, n_neg = int(labels.sum()), int((labels == 0).sum())
    target = np.where(labels == 1, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))
    z = (x - x.mean()) / x.std()
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.concatenate([z, z])[:, None],
        np.repeat([1, 0], len(z)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    found = platt.fit(x, labels)
    assert (found.positives, found.negatives, found.reason) == (n_pos, n_neg, "")
    expected = oracle.predict_proba(z[:, None])[:, 1]
    np.testing.assert_allclose(platt.calibrate(x[:, None], [found])[:, 0], expected, atol=1e-5)


def test_scores_that_are_no_probabilities_become_ones() -> None:
    scaling = platt.fit(*simulated(2000, 0))
    logits, labels = simulated(4000, 1)
    patients = np.arange(len(labels))

    def ece(probability: np.ndarray) -> float:
        table = metrics.measure_calibration(
            probability[:, None], labels[:, None], patients, resamples=0
        )
        return table.ece.mean.value

    assert ece(expit(logits)) > 0.15
    assert ece(platt.calibrate(logits[:, None], [scaling])[:, 0]) < 0.03


def test_the_order_of_the_rows_changes_no_bit() -> None:
    logits, labels = simulated(300, 5)
    order = np.random.default_rng(0).permutation(300)
    assert platt.fit(logits, labels) == platt.fit(logits[order], labels[order])


@pytest.mark.parametrize("positives, reason", [
    (19, "not calibrated: 19 positives in the validation part, 20 are needed"),
    (20, ""),
    (380, ""),
    (381, "not calibrated: 19 negatives in the validation part, 20 are needed"),
])  # fmt: skip
def test_few_examples_leave_the_raw_score(positives: int, reason: str) -> None:
    labels = (np.arange(400) < positives).astype(np.uint8)
    logits = np.random.default_rng(0).normal(size=400) + labels
    found = platt.fit(logits, labels)
    assert found.reason == reason
    if reason:
        np.testing.assert_array_equal(
            platt.calibrate(logits[:, None], [found])[:, 0], expit(logits)
        )


def test_a_score_that_falls_with_the_label_stays_raw() -> None:
    logits, labels = simulated(400, 0)
    found = platt.fit(-logits, labels)
    assert "does not rise with the label" in found.reason
    assert (found.slope, found.intercept) == (1, 0)


def test_calibration_keeps_the_order_and_never_says_certain() -> None:
    labels = (np.arange(100) < 50).astype(np.uint8)
    logits = np.where(
        labels == 1, 5.0, -5.0
    )  # separable: without Platt's targets the slope has no end
    found = platt.fit(logits, labels)
    probability = platt.calibrate(np.array([[-5.0], [0.0], [5.0]]), [found])[:, 0]
    assert 0.01 < probability[0] < probability[1] < probability[2] < 0.99
