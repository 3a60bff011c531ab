"""The distance to the training images: scikit-learn's, and what lies beyond its threshold."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from kacl_jax.evaluation import familiarity


def embeddings(n: int, seed: int, k: int = 24) -> np.ndarray:
    """float32 [n k] ≥ 0, skewed and correlated, as means of a ReLU's output are."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(k, k)) / np.sqrt(k)
    return np.exp(random.normal(size=(n, k)) @ mixing * 0.7 - 1).astype(np.float32)


@pytest.mark.parametrize("n", [12, 300])
def test_the_distance_is_scikit_learns(n: int) -> None:
    """Also with fewer images than channels."""
    training = embeddings(n, 0)
    found = familiarity.fit(training, embeddings(50, 1))
    compress = lambda x: np.log1p(x.astype(np.float64) / np.median(training))  # noqa: E731
    oracle = LedoitWolf().fit(compress(training))
    others = embeddings(20, 2)
    expected = np.sqrt(oracle.mahalanobis(compress(others)))
    np.testing.assert_allclose(found.distance(others), expected, rtol=1e-3)


def test_few_held_out_images_are_beyond_the_threshold_and_strange_ones_are() -> None:
    found = familiarity.fit(embeddings(600, 0), embeddings(200, 1))
    held_out = found.distance(embeddings(2000, 2)) > found.threshold
    assert 0.002 < held_out.mean() < 0.05
    strange = np.random.default_rng(3).permuted(embeddings(50, 4), axis=1)  # channels out of place
    assert (found.distance(strange) > found.threshold).mean() > 0.5
    assert (found.distance(np.zeros((1, 24), np.float32)) > found.threshold).all()


def test_the_unit_of_the_embedding_does_not_matter() -> None:
    one = familiarity.fit(embeddings(100, 0), embeddings(50, 1))
    other = familiarity.fit(1000 * embeddings(100, 0), 1000 * embeddings(50, 1))
    np.testing.assert_allclose(
        one.distance(embeddings(9, 2)), other.distance(1000 * embeddings(9, 2)), rtol=1e-4
    )
