"""The region rule: each part of it on the host and on the device, by one table of cases, and the rule as a whole."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from kacl_jax.step import regions
from kacl_jax.step.peak_component import peak_component
from kacl_jax.step.regions import ORIGINS, RegionRule

# ---- map → region ---------------------------------------------------------------------------------------------

ThresholdMap = Callable[..., tuple[np.ndarray, bool]]  # cam, size, relu, threshold → mask, fallback
SETTINGS: dict[str, Any] = {"size": 64, "relu": True, "threshold": 0.5}


def on_host(cam: np.ndarray, **how: Any) -> tuple[np.ndarray, bool]:
    components = regions.threshold_map(cam, **how)
    return components.mask, components.fallback


def on_device(cam: np.ndarray, **how: Any) -> tuple[np.ndarray, bool]:
    masks, fallback = regions.threshold_maps_on_device(jnp.float32(cam)[None], **how)
    return np.asarray(masks[0]), bool(fallback[0])


both = pytest.mark.parametrize("threshold_map", [on_host, on_device])


def blank(*spots: tuple[Any, float], side: int = 64) -> np.ndarray:
    cam = np.zeros((side, side), np.float32)
    for where, value in spots:
        cam[where] = value
    return cam


@both
@pytest.mark.parametrize(
    ("cam", "kept", "left_out"),
    [
        (blank((np.s_[1, 1], 1.0), (np.s_[4:7, 4:7], 0.8), side=8), (12, 12), (44, 44)),
        (blank((np.s_[10:20, 10:20], 1.0), (np.s_[20:30, 20:30], 0.9)), (15, 15), (25, 25)),
        (blank((np.s_[10:20, 10:20], 0.9), (np.s_[20:30, 20:30], 1.0)), (25, 25), (15, 15)),
    ],
    ids=["the peak's component, not the largest", "joined by edges only", "whichever holds it"],
)
def test_the_region_is_the_component_of_the_peak(
    threshold_map: ThresholdMap, cam: np.ndarray, kept: Any, left_out: Any
) -> None:
    mask, fallback = threshold_map(cam, **SETTINGS)
    assert (bool(mask[kept]), bool(mask[left_out]), fallback) == (True, False, False)


@both
def test_relu_drops_what_speaks_against_the_finding(threshold_map: ThresholdMap) -> None:
    cam = -np.ones((8, 8), np.float32)
    cam[2:5, 2:5] = 0.1
    cam[6, 6] = -9.0
    with_relu, _ = threshold_map(cam, size=64, relu=True, threshold=0.5)
    without, _ = threshold_map(cam, size=64, relu=False, threshold=0.5)
    assert with_relu.mean() < 0.25 < without.mean()


@both
@pytest.mark.parametrize(
    "cam",
    [
        np.zeros((7, 7)),
        np.full((7, 7), 3.0),
        np.full((7, 7), np.nan),
        -np.ones((7, 7)) - np.eye(7),
        np.full((7, 7), np.inf),
        blank((np.s_[30:32, 10:40], 1.0)),
    ],
    ids=["zero", "flat", "nan", "all negative", "inf", "narrower than 3 px"],
)
def test_a_map_that_marks_nothing_gives_the_whole_image_less_a_rim(
    threshold_map: ThresholdMap, cam: np.ndarray
) -> None:
    mask, fallback = threshold_map(cam, **SETTINGS)
    assert fallback
    assert mask.sum() == 62 * 62
    assert not mask[0].any()


@both
def test_a_higher_threshold_gives_a_smaller_region(threshold_map: ThresholdMap) -> None:
    y, x = np.mgrid[:16, :16]
    cam = np.exp(-((x - 5) ** 2 + (y - 9) ** 2) / 20).astype(np.float32)
    areas = [threshold_map(cam, size=64, relu=True, threshold=t)[0].sum() for t in (0.2, 0.5, 0.8)]
    assert areas[0] > areas[1] > areas[2]


def test_components_are_scipys() -> None:
    random = np.random.default_rng(0)
    several = 0
    for _ in range(50):
        cam = random.normal(size=random.integers(3, 17, 2)).astype(np.float32)
        found = regions.threshold_map(cam, **SETTINGS)
        expected, n = ndimage.label(found.labels > 0)
        assert n == found.labels.max()
        several += n > 1
        # Each of theirs is one of ours, so the partitions are equal.
        pairs = np.unique(np.stack([expected.ravel(), found.labels.ravel()]), axis=1)
        assert pairs.shape == (2, n + 1)
    assert several > 25


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
    found = regions.threshold_map(cam, size=32, relu=relu, threshold=threshold)
    rows, columns = np.nonzero(found.mask)
    assert np.ptp(rows) >= 2
    assert np.ptp(columns) >= 2


def maps(n: int, u: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    smooth = [cv2.GaussianBlur(random.normal(size=(u, u)), (0, 0), 0.8) for _ in range(n)]
    return np.stack(smooth).astype(np.float32)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("u", "size", "threshold"), [(7, 224, 0.5), (2, 64, 0.5), (14, 96, 0.2)])
def test_regions_on_the_device_are_those_of_the_host(relu, u, size, threshold) -> None:
    cams = maps(60, u)
    cams[0], cams[1], cams[2, 0, 0] = 0, -1 - np.abs(cams[1]), np.nan
    how = {"size": size, "relu": relu, "threshold": threshold}
    masks, fallback = jax.jit(lambda cam: regions.threshold_maps_on_device(cam, **how))(cams)
    host = [regions.threshold_map(cam, **how) for cam in cams]
    assert fallback.tolist() == [region.fallback for region in host]
    assert 0 < np.count_nonzero(fallback) < 40
    differing = [
        np.count_nonzero(m != r.mask) for m, r in zip(np.asarray(masks), host, strict=True)
    ]
    # A pixel whose heat is the threshold to the last bit may fall on either side.
    assert max(differing) <= 1
    assert sum(differing) <= 2


def test_a_winding_region_is_followed_to_its_end() -> None:
    spiral = np.zeros((1, 9, 9), bool)
    y, x, dy, dx = 0, 0, 0, 1
    for length in (8, 8, 8, 6, 6, 4, 4, 2, 2):
        for _ in range(length):
            spiral[0, y, x] = True
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
    spiral[0, y, x] = True
    np.testing.assert_array_equal(peak_component(jnp.asarray(spiral), jnp.zeros(1, int)), spiral)


@pytest.mark.parametrize("many_runs", [False, True])
def test_the_component_on_the_device_is_scipys(many_runs: bool) -> None:
    """With more runs than there is room for all masks at once, each mask has its own."""
    random = np.random.default_rng(1)
    sharpness = 0.3 if many_runs else 3.0
    fields = [cv2.GaussianBlur(random.normal(size=(70, 45)), (0, 0), sharpness) for _ in range(6)]
    hot = np.stack([field > np.median(field) for field in fields])
    assert ((hot[:, :, 1:] > hot[:, :, :-1]).sum((1, 2)) > 8 * 70).any() == many_runs
    peaks = random.integers(0, 70 * 45, 6).astype(np.int32)
    actual = peak_component(jnp.asarray(hot), jnp.asarray(peaks))
    for mask, peak, part in zip(hot, peaks, actual, strict=True):
        labels, _ = ndimage.label(mask)
        np.testing.assert_array_equal(part, mask & (labels == labels.flat[peak]))


# ---- boxes and masks --------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_box_as_mask_keeps_its_place_and_at_least_three_pixels(sides: list[float]) -> None:
    x0, x1 = sorted(sides[:2])
    y0, y1 = sorted(sides[2:])
    mask = regions.box_mask(np.array([x0, y0, x1, y1]), 48)
    back = regions.bounding_box(mask) * 48
    assert back[2] - back[0] >= 3
    assert back[3] - back[1] >= 3
    np.testing.assert_allclose(back, np.array([x0, y0, x1, y1]) * 48, atol=3.01)


def test_a_box_larger_than_three_pixels_is_rounded_as_the_golden_masks_are() -> None:
    x, y, w, h = 225.0847, 547.0192, 86.7797, 79.1864
    mask = regions.box_mask(np.array([x, y, x + w, y + h]) / 1024, 1024)
    assert mask.sum() == 6873


def test_boxes_on_the_device_are_those_of_the_host() -> None:
    random = np.random.default_rng(0)
    low, extent = random.uniform(0, 1, (300, 2)), random.uniform(0, 0.4, (300, 2)) ** 2
    boxes = np.concatenate([low, np.minimum(low + extent, 1)], 1).astype(np.float32)
    masks = regions.box_masks_on_device(jnp.asarray(boxes), 96)
    np.testing.assert_array_equal(masks, np.stack([regions.box_mask(box, 96) for box in boxes]))


def test_the_union_of_boxes_has_the_pixels_of_each_and_an_unused_place_has_none() -> None:
    disjoint = [[8, 16, 24, 32], [40, 4, 44, 60], [0, 0, 0, 0]]
    overlapping = [[8, 16, 24, 32], [20, 20, 36, 40], [0, 0, 0, 0]]
    expected = np.zeros((2, 64, 64), bool)
    expected[:, 16:32, 8:24] = expected[0, 4:60, 40:44] = expected[1, 20:40, 20:36] = True
    boxes = np.float32([disjoint, overlapping]) / 64
    np.testing.assert_array_equal([regions.union_mask(one, 64) for one in boxes], expected)
    np.testing.assert_array_equal(regions.union_masks_on_device(jnp.asarray(boxes), 64), expected)


# ---- the whole rule ---------------------------------------------------------------------------------------------

RULE = RegionRule(source="cam", truth_boxes=True, relu=True, threshold=0.5, size=96, seed=3)
BOX = np.float32([0.25, 0.5, 0.5, 0.75])


def batch(n: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Maps with one blob each; image 0 is annotated with finding 1."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8]
    cam = np.stack(
        [
            np.exp(-(((x - a) / s) ** 2 + ((y - b) / t) ** 2))
            for a, b, s, t in zip(
                *random.uniform(1, 6, (2, n)), *random.uniform(0.8, 2, (2, n)), strict=True
            )
        ]
    ).astype(np.float32)
    boxes = np.zeros((n, 2, 2, 4), np.float32)
    boxes[0, 1, 0] = BOX
    box_finding = np.full(n, -1, np.int32)
    box_finding[0] = 1
    return cam, box_finding, boxes, np.arange(50, 50 + n, dtype=np.int32)


def test_a_truth_box_takes_the_place_of_the_cam_region() -> None:
    masks, origin = RULE.mark(*batch(), step=0)
    np.testing.assert_allclose(regions.bounding_box(masks[0]), BOX)
    assert masks[0].sum() == 24 * 24
    assert origin == {"truth": 1, "cam": 11, "fallback": 0, "random": 0, "whole": 0}
    without, origin = dataclasses.replace(RULE, truth_boxes=False).mark(*batch(), step=0)
    assert origin["cam"] == 12
    np.testing.assert_array_equal(without[1:], masks[1:])


def test_cam_regions_are_those_of_the_one_function() -> None:
    cam, *rest = batch()
    masks, _ = RULE.mark(cam, *rest, step=0)
    for row in range(1, len(cam)):
        expected = regions.threshold_map(cam[row], size=96, relu=True, threshold=0.5).mask
        np.testing.assert_array_equal(masks[row], expected)


def test_a_box_shaped_region_is_the_smallest_rectangle_around_the_mask() -> None:
    cam, *rest = batch()
    masks, _ = RULE.mark(cam, *rest, step=0)
    boxes, origin = dataclasses.replace(RULE, shape="box").mark(cam, *rest, step=0)
    assert origin["cam"] == 11
    for mask, box in zip(masks, boxes, strict=True):
        ys, xs = np.nonzero(mask)
        expected = np.zeros_like(mask)
        expected[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
        np.testing.assert_array_equal(box, expected)
    assert (boxes.sum((1, 2)) > masks.sum((1, 2)))[1:].all()


def test_random_rectangles_are_as_large_as_the_boxes_where_regions_are_boxes() -> None:
    cam, *rest = batch()
    rule = dataclasses.replace(RULE, shape="box", truth_boxes=False)
    boxes, _ = rule.mark(cam, *rest, step=4)
    drawn, _ = dataclasses.replace(rule, source="random").mark(cam, *rest, step=4)
    sides = [np.ptp(np.nonzero(box), axis=1) + 1 for box in boxes]
    for rectangle in drawn:
        away = np.abs(np.array(sides) - np.ptp(np.nonzero(rectangle), axis=1) - 1).max(1)
        assert away.min() <= 1


def test_flat_maps_are_counted() -> None:
    cam, *rest = batch()
    _, origin = RULE.mark(np.zeros_like(cam), *rest, step=0)
    assert origin["fallback"] == 11


def test_random_rectangles_have_the_size_of_cam_regions_but_not_their_place() -> None:
    rule = dataclasses.replace(RULE, source="random")
    cam, box_finding, boxes, ids = batch()
    masks, origin = rule.mark(cam, box_finding, boxes, ids, step=4)
    assert origin["random"] == 12
    cam_masks, _ = dataclasses.replace(RULE, truth_boxes=False).mark(
        cam, box_finding, boxes, ids, step=4
    )
    areas = np.sort(cam_masks.sum((1, 2)))
    drawn = masks.sum((1, 2))
    assert areas[0] * 0.8 <= drawn.min()
    assert drawn.max() <= areas[-1] * 1.2
    for mask in masks:  # rectangles
        x0, y0, x1, y1 = regions.bounding_box(mask) * 96
        assert mask.sum() == round((x1 - x0) * (y1 - y0))
    assert (masks & cam_masks).sum() < 0.5 * masks.sum()


def test_each_random_rectangle_has_area_and_aspect_of_one_cam_region_of_the_batch() -> None:
    """To the pixel that rounding costs on either side."""
    cam, *rest = batch()
    masks, _ = dataclasses.replace(RULE, source="random").mark(cam, *rest, step=4)
    shapes = []
    for mask in (regions.threshold_map(one, size=96, relu=True, threshold=0.5).mask for one in cam):
        x0, y0, x1, y1 = regions.bounding_box(mask)
        aspect, area = (x1 - x0) / (y1 - y0), mask.sum()
        shapes.append((np.sqrt(area * aspect), np.sqrt(area / aspect)))
    for mask in masks:
        x0, y0, x1, y1 = regions.bounding_box(mask) * 96
        away = np.abs(np.minimum(shapes, 96) - (x1 - x0, y1 - y0)).max(1)
        assert away.min() <= 1.01


def test_a_random_rectangle_belongs_to_seed_image_and_step() -> None:
    rule = dataclasses.replace(RULE, source="random")
    first, _ = rule.mark(*batch(), step=4)
    again, _ = rule.mark(*batch(), step=4)
    np.testing.assert_array_equal(first, again)
    later, _ = rule.mark(*batch(), step=5)
    other, _ = dataclasses.replace(rule, seed=4).mark(*batch(), step=4)
    assert (first != later).any((1, 2)).sum() >= 10
    assert (first != other).any((1, 2)).sum() >= 10


def test_the_whole_image_is_less_a_rim() -> None:
    masks, origin = dataclasses.replace(RULE, source="whole").mark(*batch(), step=0)
    assert origin["whole"] == 11
    assert masks[1].sum() == 94 * 94


@pytest.mark.parametrize("source", ["cam", "whole"])
@pytest.mark.parametrize("shape", ["mask", "box"])
def test_from_equal_masks_the_device_marks_the_regions_of_the_host(
    source: Any, shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both shapes, truth boxes among them; that the masks themselves are equal is tested above."""
    random = np.random.default_rng(0)
    cam, box_finding = maps(40, 7), np.full(40, -1, np.int32)
    cam[:2], box_finding[::5] = 0, 1
    low = random.uniform(0, 0.5, (40, 2, 2, 2))
    boxes = np.concatenate([low, low + 0.4], -1).astype(np.float32)
    boxes[::10, :, 1] = 0

    def marked_on_host(cam: jax.Array, **how: Any) -> tuple[jax.Array, jax.Array]:
        found = [regions.threshold_map(one, **how) for one in np.asarray(cam)]
        return jnp.stack([f.mask for f in found]), jnp.array([f.fallback for f in found])

    monkeypatch.setattr(regions, "threshold_maps_on_device", marked_on_host)
    rule = dataclasses.replace(RULE, source=source, shape=shape)
    device, origin = rule.mark_on_device(*map(jnp.asarray, (cam, box_finding, boxes)))
    host, counted = rule.mark(cam, box_finding, boxes, np.arange(40, dtype=np.int32), 0)
    np.testing.assert_array_equal(device, host)
    assert Counter(ORIGINS[k] for k in np.asarray(origin)) == +Counter(counted)
