"""Shape of a 2-D region: 9 features.

The outline is that of marching squares at ½ (Lorensen and Cline 1987 in two dimensions). It passes half way between a
pixel inside and a 4-neighbour outside, and separates pixels that touch only at a corner.

* MeshSurface A: a 2×2 window with 1, 2, 2 (diagonal), 3, 4 pixels inside adds ⅛, ½, ¼, ⅞, 1 to it.
* Perimeter P: the same windows add √½, 1, 2√½, √½, 0 to it.
* PixelSurface: number of pixels. PerimeterSurfaceRatio = P / A. Sphericity = 2 √(πA) / P.
* MaximumDiameter: the largest distance of two outline points.
* MajorAxisLength = 4 √λ₁, MinorAxisLength = 4 √λ₂, Elongation = √(λ₂/λ₁); λ₁ ≥ λ₂ are the eigenvalues of the
  covariance of the pixels' coordinates.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from kacl_jax.radiomics.counts.matrices import Outline


def features(outline: Outline) -> dict[str, Float[Array, ""]]:
    """Features by name, for one region with 2 or more pixels."""
    one, three, side_by_side, diagonal, full = outline.window_counts.astype(float)
    surface = one / 8 + side_by_side / 2 + diagonal / 4 + three * 7 / 8 + full
    perimeter = (one + three + 2 * diagonal) * jnp.sqrt(0.5) + side_by_side
    pixels = outline.row_counts.sum().astype(float)
    large, small = _eigenvalues(outline, pixels)
    return {
        "Elongation": jnp.sqrt(small / large),
        "MajorAxisLength": 4 * jnp.sqrt(large),
        "MaximumDiameter": _longest_distance(outline),
        "MeshSurface": surface,
        "MinorAxisLength": 4 * jnp.sqrt(small),
        "Perimeter": perimeter,
        "PerimeterSurfaceRatio": perimeter / surface,
        "PixelSurface": pixels,
        "Sphericity": 2 * jnp.sqrt(jnp.pi * surface) / perimeter,
    }


def _eigenvalues(
    outline: Outline, pixels: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """λ₁ ≥ λ₂ of the covariance of the pixels' coordinates.

    λ₂ is computed as the mean squared distance from the long axis, a sum without cancellation. As trace − λ₁ it would
    lose the width of a thin region in float32.
    """
    rows, columns = outline.row_counts.astype(float), outline.column_counts.astype(float)
    position = jnp.arange(len(rows)).astype(float)
    y = position - (rows * position).sum() / pixels
    x_mean = (columns * position).sum() / pixels
    row_length = jnp.maximum(rows, 1)
    row_mean = outline.offset_sum.astype(float) / row_length
    row_variance = outline.offset_square_sum.astype(float) / row_length - row_mean**2
    x = outline.row_start.astype(float) - x_mean + row_mean
    yy = (rows * y**2).sum() / pixels
    xx = (rows * (x**2 + row_variance)).sum() / pixels
    xy = (rows * x * y).sum() / pixels
    # The direction of the long axis: half of the angle whose tangent is 2 xy / (xx − yy).
    angle = jnp.arctan2(2 * xy, xx - yy) / 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    small = (rows * ((cos * y - sin * x) ** 2 + sin**2 * row_variance)).sum() / pixels
    large = (rows * ((cos * x + sin * y) ** 2 + cos**2 * row_variance)).sum() / pixels
    return large, small


def _longest_distance(outline: Outline) -> Float[Array, ""]:
    # On each half-pixel line, only the outermost outline points can be an end of the longest distance.
    line = jnp.arange(len(outline.low))
    has_points = outline.low <= outline.high
    across = outline.high[:, None] - outline.low
    squared = across**2 + (line[:, None] - line) ** 2
    longest = jnp.where(has_points[:, None] & has_points, squared, 0).max()
    return jnp.sqrt(longest.astype(float)) / 2
