"""Grad-CAM against the closed-form CAM, and the way from a map to a region."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from kacl_jax.step import gradcam

RULE = {"size": 64, "relu": True, "threshold": 0.5}


@pytest.fixture
def feature_map() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 4, 5, 16)).astype(np.float32)


def linear_head(weights: np.ndarray) -> object:
    return lambda a: a.mean((1, 2)) @ weights


def test_grad_cam_of_a_pooled_linear_head_is_the_closed_form_cam(feature_map: np.ndarray) -> None:
    weights = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    maps = gradcam.class_maps(linear_head(weights), feature_map, 8)
    np.testing.assert_allclose(
        maps, np.einsum("buvk,kc->bcuv", feature_map, weights), rtol=2e-4, atol=2e-5
    )


def test_the_mean_of_a_linear_heads_map_is_its_logit(feature_map: np.ndarray) -> None:
    weights = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    maps = gradcam.class_maps(linear_head(weights), feature_map, 8)
    np.testing.assert_allclose(maps.mean((2, 3)), feature_map.mean((1, 2)) @ weights, atol=1e-5)


def test_changing_one_image_leaves_the_maps_of_the_others(feature_map: np.ndarray) -> None:
    weights = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)

    def head(a: jax.Array) -> jax.Array:
        return jnp.tanh(a.mean((1, 2))) @ weights

    before = gradcam.class_maps(head, feature_map, 8)
    changed = feature_map.copy()
    changed[1] += 1
    after = gradcam.class_maps(head, changed, 8)
    np.testing.assert_array_equal(before[::2], after[::2])
    assert not np.allclose(before[1], after[1])


def test_the_marked_finding_is_the_positive_one_with_the_highest_logit() -> None:
    logits = np.float32([[5, 1, 2], [5, 1, 2], [-1, -3, -2]])
    labels = np.float32([[0, 1, 1], [0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(gradcam.marked_finding(logits, labels), [2, 0, 1])


def test_the_region_is_the_component_of_the_peak_not_the_largest() -> None:
    cam = np.zeros((8, 8), np.float32)
    cam[1, 1] = 1.0
    cam[4:7, 4:7] = 0.8
    found = gradcam.regions(cam, **RULE)
    assert not found.fallback
    assert (gradcam.mask_box(found.mask)[2:] < 0.5).all()
    assert found.labels.max() == 2


def test_components_join_by_edges_only() -> None:
    cam = np.zeros((64, 64), np.float32)
    cam[10:20, 10:20] = 1.0
    cam[20:30, 20:30] = 0.9
    assert gradcam.regions(cam, **RULE).labels.max() == 2


def test_components_are_scipys() -> None:
    random = np.random.default_rng(0)
    several = 0
    for _ in range(50):
        cam = random.normal(size=random.integers(3, 17, 2)).astype(np.float32)
        found = gradcam.regions(cam, **RULE)
        expected, n = ndimage.label(found.labels > 0)
        assert n == found.labels.max()
        several += n > 1
        # Each of theirs is one of ours, so the partitions are equal.
        pairs = np.unique(np.stack([expected.ravel(), found.labels.ravel()]), axis=1)
        assert pairs.shape == (2, n + 1)
    assert several > 25


def test_relu_drops_what_speaks_against_the_finding() -> None:
    cam = -np.ones((8, 8), np.float32)
    cam[2:5, 2:5] = 0.1
    cam[6, 6] = -9.0
    with_relu = gradcam.regions(cam, size=64, relu=True, threshold=0.5).mask
    without = gradcam.regions(cam, size=64, relu=False, threshold=0.5).mask
    assert with_relu.mean() < 0.25 < without.mean()


@pytest.mark.parametrize(
    "cam",
    [
        np.zeros((7, 7)),
        np.full((7, 7), 3.0),
        np.full((7, 7), np.nan),
        -np.ones((7, 7)) - np.eye(7),
        np.full((7, 7), np.inf),
    ],
    ids=["zero", "flat", "nan", "all negative", "inf"],
)
def test_a_map_that_marks_nothing_gives_the_whole_image_less_a_rim(cam: np.ndarray) -> None:
    found = gradcam.regions(cam, **RULE)
    assert found.fallback
    assert found.mask.sum() == 62 * 62
    assert not found.mask[0].any()


def test_a_spot_under_three_pixels_gives_the_whole_image() -> None:
    cam = np.zeros((64, 64), np.float32)
    cam[30:32, 10:40] = 1.0
    assert gradcam.regions(cam, **RULE).fallback


@settings(max_examples=200, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    st.booleans(),
    st.floats(0, 0.99),
)
def test_a_region_is_never_empty_and_holds_the_peak(
    cam: np.ndarray, relu: bool, threshold: float
) -> None:
    found = gradcam.regions(cam, size=32, relu=relu, threshold=threshold)
    rows, columns = np.nonzero(found.mask)
    assert np.ptp(rows) >= 2
    assert np.ptp(columns) >= 2


def test_a_higher_threshold_gives_a_smaller_region() -> None:
    y, x = np.mgrid[:16, :16]
    cam = np.exp(-((x - 5) ** 2 + (y - 9) ** 2) / 20).astype(np.float32)
    areas = [
        gradcam.regions(cam, size=64, relu=True, threshold=t).mask.sum() for t in (0.2, 0.5, 0.8)
    ]
    assert areas[0] > areas[1] > areas[2]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_box_as_mask_keeps_its_place_and_at_least_three_pixels(sides: list[float]) -> None:
    x0, x1 = sorted(sides[:2])
    y0, y1 = sorted(sides[2:])
    mask = gradcam.box_mask(np.array([x0, y0, x1, y1]), 48)
    back = gradcam.mask_box(mask) * 48
    assert back[2] - back[0] >= 3
    assert back[3] - back[1] >= 3
    np.testing.assert_allclose(back, np.array([x0, y0, x1, y1]) * 48, atol=3.01)


def test_a_box_larger_than_three_pixels_is_rounded_as_the_golden_masks_are() -> None:
    x, y, w, h = 225.0847, 547.0192, 86.7797, 79.1864
    mask = gradcam.box_mask(np.array([x, y, x + w, y + h]) / 1024, 1024)
    assert mask.sum() == 6873
