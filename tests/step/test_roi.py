"""Which region goes to radiomics."""

from __future__ import annotations

import dataclasses

import numpy as np

from kacl_jax.step import gradcam
from kacl_jax.step.roi import RegionRule

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
    boxes = np.zeros((n, 2, 4), np.float32)
    boxes[0, 1] = BOX
    box_finding = np.full(n, -1)
    box_finding[0] = 1
    return cam, box_finding, boxes, np.arange(n) + 50


def test_a_truth_box_takes_the_place_of_the_cam_region() -> None:
    masks, origin = RULE.mark(*batch(), step=0)
    np.testing.assert_allclose(gradcam.mask_box(masks[0]), BOX)
    assert masks[0].sum() == 24 * 24
    assert origin == {"truth": 1, "cam": 11, "fallback": 0, "random": 0, "whole": 0}
    without, origin = dataclasses.replace(RULE, truth_boxes=False).mark(*batch(), step=0)
    assert origin["cam"] == 12
    np.testing.assert_array_equal(without[1:], masks[1:])


def test_cam_regions_are_those_of_the_one_function() -> None:
    cam, *rest = batch()
    masks, _ = RULE.mark(cam, *rest, step=0)
    for row in range(1, len(cam)):
        expected = gradcam.regions(cam[row], size=96, relu=True, threshold=0.5).mask
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
        x0, y0, x1, y1 = gradcam.mask_box(mask) * 96
        assert mask.sum() == round((x1 - x0) * (y1 - y0))
    assert (masks & cam_masks).sum() < 0.5 * masks.sum()


def test_each_random_rectangle_has_area_and_aspect_of_one_cam_region_of_the_batch() -> None:
    """To the pixel that rounding costs on either side."""
    cam, *rest = batch()
    masks, _ = dataclasses.replace(RULE, source="random").mark(cam, *rest, step=4)
    shapes = []
    for mask in (gradcam.regions(one, size=96, relu=True, threshold=0.5).mask for one in cam):
        x0, y0, x1, y1 = gradcam.mask_box(mask)
        aspect, area = (x1 - x0) / (y1 - y0), mask.sum()
        shapes.append((np.sqrt(area * aspect), np.sqrt(area / aspect)))
    for mask in masks:
        x0, y0, x1, y1 = gradcam.mask_box(mask) * 96
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
