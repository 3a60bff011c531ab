"""Grad-CAM against the closed-form CAM."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kacl_jax.step import gradcam


@pytest.fixture
def feature_map() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 16)).astype(np.float32))


def linear_head(weights: np.ndarray) -> object:
    return lambda a: a.mean((1, 2)) @ weights


def test_grad_cam_of_a_pooled_linear_head_is_the_closed_form_cam(feature_map: jax.Array) -> None:
    weights = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    maps = gradcam.class_maps(linear_head(weights), feature_map, 8)
    np.testing.assert_allclose(
        maps, np.einsum("buvk,kc->bcuv", feature_map, weights), rtol=2e-4, atol=2e-5
    )


def test_the_mean_of_a_linear_heads_map_is_its_logit(feature_map: jax.Array) -> None:
    weights = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    maps = gradcam.class_maps(linear_head(weights), feature_map, 8)
    np.testing.assert_allclose(maps.mean((2, 3)), feature_map.mean((1, 2)) @ weights, atol=1e-5)


def test_changing_one_image_leaves_the_maps_of_the_others(feature_map: jax.Array) -> None:
    weights = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)

    def head(a: jax.Array) -> jax.Array:
        return jnp.tanh(a.mean((1, 2))) @ weights

    before = gradcam.class_maps(head, feature_map, 8)
    after = gradcam.class_maps(head, feature_map.at[1].add(1), 8)
    np.testing.assert_array_equal(before[::2], after[::2])
    assert not np.allclose(before[1], after[1])


def test_the_marked_finding_is_the_positive_one_with_the_highest_logit() -> None:
    logits = jnp.float32([[5, 1, 2], [5, 1, 2], [-1, -3, -2]])
    labels = jnp.float32([[0, 1, 1], [0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(gradcam.region_finding(logits, labels), [2, 0, 1])
