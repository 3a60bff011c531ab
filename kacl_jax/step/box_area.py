"""The area of truth boxes in each cell of a map, also of boxes that the augmentation turned.

Boxes are fractions (x0, y0, x1, y1); areas are in units of the image's area. A box covers a part of the plane once,
however many boxes of the finding overlap there. Axes: b batch · c findings · k boxes of a finding · u v map cells ·
s = 2k − 1 strips between neighbouring edges of the boxes.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kacl_jax.step.augment import invert


def union_area(boxes: Float[Array, "b c k 4"], u: int, v: int) -> Float[Array, "b c {u} {v}"]:
    """The area of the boxes' union in each cell. Empty boxes have none.

    The edges of the boxes cut the image into strips. A box covers the crossing of a row and a column strip wholly or
    not at all, so no area counts twice.
    """
    columns, in_column = _strips(boxes[..., 0], boxes[..., 2])
    rows, in_row = _strips(boxes[..., 1], boxes[..., 3])
    return jnp.einsum(
        "bciu,bcij,bcjv->bcuv",
        _overlap(rows, u),
        _is_covered(in_row, in_column).astype(boxes.dtype),
        _overlap(columns, v),
        precision="highest",
    )


def turned_union_area(
    boxes: Float[Array, "b c k 4"], affine: Float[Array, "b 2 3"], u: int, v: int
) -> Float[Array, "b c {u} {v}"]:
    """The same after the augmentation: each crossing of two strips becomes a parallelogram.

    affine: from output to input, in centred fractions, as augment.py has it. A mirror image turns the corners' order
    around, which changes only the sign of a polygon's area.
    """
    columns, in_column = _strips(boxes[..., 0], boxes[..., 2])
    rows, in_row = _strips(boxes[..., 1], boxes[..., 3])
    inverse = invert(affine)
    # The corners of each crossing, in their order around it: [b c i j 4], for x and for y.
    xs = jnp.stack([columns[..., edge] for edge in (0, 1, 1, 0)], -1)[:, :, None] - 0.5
    ys = jnp.stack([rows[..., edge] for edge in (0, 0, 1, 1)], -1)[:, :, :, None] - 0.5
    x, y = (inverse[:, i, :, None, None, None, None] for i in (0, 1))
    corners = [m[:, 0] * xs + m[:, 1] * ys + m[:, 2] + 0.5 for m in (x, y)]
    areas = _polygon_area(corners[0], corners[1], u, v)
    return jnp.where(_is_covered(in_row, in_column)[..., None, None], areas, 0.0).sum((2, 3))


def _polygon_area(
    x: Float[Array, "*shape n"], y: Float[Array, "*shape n"], u: int, v: int
) -> Float[Array, "*shape {u} {v}"]:
    """The area of a polygon in each cell, exactly.

    It is the sum over the polygon's sides of the signed area below the side, inside the cell. corners: in their order.
    """
    left, top = jnp.arange(v) / v, jnp.arange(u)[:, None] / u
    area = jnp.zeros((*x.shape[:-1], u, v))
    for a in range(x.shape[-1]):
        b = (a + 1) % x.shape[-1]
        x_a, x_b, y_a, y_b = (
            side[..., None, None] for side in (x[..., a], x[..., b], y[..., a], y[..., b])
        )
        begin, end = (jnp.clip(place, left, left + 1 / v) for place in (x_a, x_b))
        width = jnp.where(x_a == x_b, 1.0, x_b - x_a)
        y_begin, y_end = (y_a + (place - x_a) / width * (y_b - y_a) for place in (begin, end))
        height = _mean_above(y_begin - top, y_end - top)
        height -= _mean_above(y_begin - top - 1 / u, y_end - top - 1 / u)
        area += (end - begin) * height
    return jnp.abs(area)


def _mean_above(
    start: Float[Array, "*shape"], stop: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The mean of max(z, 0) over a straight line from z = start to z = stop."""
    high, low = jnp.maximum(start, stop), jnp.minimum(start, stop)
    crossing = high**2 / (2 * jnp.where(high > low, high - low, 1.0))
    return jnp.where(low >= 0, (high + low) / 2, jnp.where(high > 0, crossing, 0.0))


def _strips(
    low: Float[Array, "b c k"], high: Float[Array, "b c k"]
) -> tuple[Float[Array, "b c s 2"], Bool[Array, "b c k s"]]:
    """The strips between neighbouring edges of k intervals: (both ends of each, which intervals hold it)."""
    edges = jnp.sort(jnp.concatenate([low, high], axis=-1))
    start, stop = edges[..., :-1], edges[..., 1:]
    is_held = (low[..., None] <= start[..., None, :]) & (stop[..., None, :] <= high[..., None])
    return jnp.stack([start, stop], -1), is_held


def _is_covered(
    in_row: Bool[Array, "b c k s"], in_column: Bool[Array, "b c k s"]
) -> Bool[Array, "b c s s"]:
    """Whether any box covers the crossing of two strips."""
    return (in_row[..., :, None] & in_column[..., None, :]).any(2)


def _overlap(intervals: Float[Array, "*shape 2"], cells: int) -> Float[Array, "*shape {cells}"]:
    """Length of each interval in each of `cells` equal parts of [0, 1]."""
    edges = jnp.arange(cells + 1) / cells
    low, high = intervals[..., :1], intervals[..., 1:]
    return jnp.maximum(jnp.minimum(high, edges[1:]) - jnp.maximum(low, edges[:-1]), 0.0)
