from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kacl_jax.step import augment
from kacl_jax.step.box_area import turned_union_area, union_area

U, V = 4, 5


def affine_of(
    *, degrees: float, scale: float = 1.0, shift: tuple[float, float] = (0, 0)
) -> jax.Array:
    """One map as `augment.draw_affine` makes it."""
    angle = np.deg2rad(degrees)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    return jnp.float32(np.concatenate([linear, np.array(shift)[:, None]], axis=1))[None]


def in_cells(box: tuple[float, ...], affine: jax.Array) -> np.ndarray:
    """The turned box's area in each cell by OpenCV's intersection of convex polygons."""
    x0, y0, x1, y1 = box
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) - 0.5
    matrix = np.asarray(affine[0], np.float64)
    turned = np.linalg.solve(matrix[:, :2], (corners - matrix[:, 2]).T).T + 0.5
    areas = np.zeros((U, V))
    for row, column in np.ndindex(U, V):
        left, top, right, bottom = column / V, row / U, (column + 1) / V, (row + 1) / U
        cell = np.float32([[left, top], [right, top], [right, bottom], [left, bottom]])
        areas[row, column] = cv2.intersectConvexConvex(turned.astype(np.float32), cell)[0]
    return areas


def test_a_square_on_its_corner_covers_half_of_each_quarter_of_its_hull() -> None:
    square = jnp.float32([[[[0.25, 0.25, 0.75, 0.75]]]])
    area = turned_union_area(square, affine_of(degrees=45), 4, 4)[0, 0]
    # A diamond |x| + |y| ≤ d in cells of side ¼: the inner four are cut at the corner, the outer eight are small.
    d = 0.25 * np.sqrt(2)
    corner, edge = 0.25**2 - (0.5 - d) ** 2 / 2, (d - 0.25) ** 2 / 2
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = corner
    expected[[0, 0, 1, 1, 2, 2, 3, 3], [1, 2, 0, 3, 0, 3, 1, 2]] = edge
    np.testing.assert_allclose(area, expected, atol=1e-6)
    assert area.sum() == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("box", [(0.1, 0.3, 0.55, 0.8), (0.0, 0.0, 1.0, 0.2), (0.9, 0.9, 1.0, 1.0)])
@pytest.mark.parametrize("degrees", [-7, 0.01, 30, 90])
def test_a_turned_boxs_area_is_opencvs(box: tuple[float, ...], degrees: float) -> None:
    affine = affine_of(degrees=degrees, scale=1.1, shift=(0.05, -0.02))
    area = turned_union_area(jnp.float32(box)[None, None, None], affine, U, V)
    np.testing.assert_allclose(area[0, 0], in_cells(box, affine), atol=2e-6)


def test_boxes_that_overlap_count_once_and_empty_ones_not() -> None:
    affine = affine_of(degrees=20)
    one, other, both = (0.2, 0.3, 0.5, 0.6), (0.4, 0.4, 0.7, 0.8), (0.4, 0.4, 0.5, 0.6)
    boxes = jnp.float32([[[one, other, (0.0, 0.0, 0.0, 0.0), one]]])
    area = turned_union_area(boxes, affine, U, V)
    expected = in_cells(one, affine) + in_cells(other, affine) - in_cells(both, affine)
    np.testing.assert_allclose(area[0, 0], expected, atol=4e-6)


def test_without_a_turn_the_box_is_its_hull_and_with_one_the_hull_is_larger() -> None:
    boxes = jnp.tile(jnp.float32([0.3, 0.3, 0.6, 0.6]), (64, 1, 1, 1))
    keys = jax.random.split(jax.random.key(0), 64)
    straight = augment.draw_affine(keys, rotate=0.0, shift=0.05, scale=0.1)
    hull = union_area(augment.warp_boxes(boxes, straight), U, V)
    np.testing.assert_allclose(turned_union_area(boxes, straight, U, V), hull, atol=1e-6)
    turned = augment.draw_affine(keys, rotate=7.0, shift=0.05, scale=0.1)
    hull = union_area(augment.warp_boxes(boxes, turned), U, V)
    # (cos t + sin t)² − 1 is 12 % on average over |t| ≤ 7°.
    ratio = hull.sum((1, 2, 3)) / turned_union_area(boxes, turned, U, V).sum((1, 2, 3))
    assert 1.08 < ratio.mean() < 1.16
