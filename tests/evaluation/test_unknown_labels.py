"""A label that is unknown counts in no loss and no number: as if the finding's column had fewer images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics.calibration import measure_calibration
from kacl_jax.evaluation.metrics.decision import decision_tables
from kacl_jax.report.curves import roc_and_pr
from kacl_jax.step.losses import focal_loss


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels with a third unknown, patients: one finding."""
    random = np.random.default_rng(0)
    labels = random.choice([-1, 0, 1], (60, 1))
    return random.random((60, 1)), labels, random.integers(0, 20, 60)


def test_no_number_counts_an_unknown_label(case) -> None:
    scores, labels, patients = case
    known = labels[:, 0] >= 0
    fewer = scores[known], labels[known], patients[known]
    for table, other in (
        *zip(metrics.ranking_tables(*case), metrics.ranking_tables(*fewer), strict=True),
        *zip(
            decision_tables(scores > 0.5, labels, patients, [""]).values(),
            decision_tables(fewer[0] > 0.5, *fewer[1:], [""]).values(),
            strict=True,
        ),
        (measure_calibration(*case).brier, measure_calibration(*fewer).brier),
        (measure_calibration(*case).ece, measure_calibration(*fewer).ece),
    ):
        assert table.mean.value == pytest.approx(other.mean.value, abs=1e-12)
        assert table.findings[0].counts == other.findings[0].counts
    reliability = measure_calibration(*case).reliability
    assert reliability == measure_calibration(*fewer).reliability
    assert roc_and_pr(scores[:, 0], labels[:, 0]) == roc_and_pr(fewer[0][:, 0], fewer[1][:, 0])


def test_the_loss_of_an_unknown_label_and_its_gradient_are_zero() -> None:
    logits = jnp.array([[2.0, -1.0, 0.5]])
    labels = jnp.array([[1.0, -1.0, 0.0]])

    def loss(x: jax.Array) -> jax.Array:
        return focal_loss(x, labels, alpha=0.25, gamma=2.0).sum()

    expected = optax.losses.sigmoid_focal_loss(
        logits[:, ::2], labels[:, ::2], alpha=0.25, gamma=2.0
    )
    np.testing.assert_allclose(loss(logits), expected.sum(), rtol=1e-6)
    assert jax.grad(loss)(logits)[0, 1] == 0
    assert jax.grad(loss)(logits)[0, 0] != 0
