"""The matrices from which the features of a region are computed, as exact integer counts.

The region lies in a square tile with an empty rim of one pixel, so that each of its pixels has eight neighbours: a
neighbour is a slice of the tile. Grey levels are 1 … g inside the region and 0 outside. All counts are integers, so any
order of summation gives the same bits. Only the method of counting (see `bincount`) depends on the platform.

Axes: n regions · s side of the tile · m = s − 2, the side without the rim · g grey levels · r run lengths · z large
zones.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, Integer, Real, Shaped, UInt8

from kacl_jax.radiomics.counts import runs, zones
from kacl_jax.radiomics.counts.bincount import Formulation, bincount
from kacl_jax.radiomics.counts.runs import DIRECTIONS
from kacl_jax.radiomics.counts.zones import Zones


class Matrices(NamedTuple):
    """The counts of one region. Sums are int64 where jax computes in double precision.

    histogram: pixels by 8-bit grey value; zeros for images of another dtype.
    level_counts: pixels by grey level.
    glcm: symmetric, by direction. glrlm: runs by direction, level and length − 1.
    valid_directions: whether some line in that direction contains two pixels of the region.
    zones: see `zones.Zones`. gldm: pixels by level and number of neighbours of the same level.
    tone_difference: Σ |level · n − Σ neighbours' levels| by level and number n of neighbours inside the region.
    outline: see `Outline`.
    """

    histogram: Int32[Array, "256"]
    level_counts: Int[Array, "g"]
    glcm: Int32[Array, "4 g g"]
    glrlm: Int32[Array, "4 g r"]
    valid_directions: Bool[Array, "4"]
    zones: Zones
    gldm: Int32[Array, "g 9"]
    tone_difference: Int32[Array, "g 9"]
    outline: Outline


class Outline(NamedTuple):
    """Counts that describe the shape of the region's mask.

    window_counts: number of 2×2 windows with one pixel inside (0), three (1), two side by side (2), two on a
      diagonal (3), all four (4).
    row_counts, column_counts: pixels in each row and column.
    row_start: x of each row's first pixel, 0 in an empty row.
    offset_sum, offset_square_sum: Σ (x − row_start)^{1, 2} over the pixels of a row.
    low, high: first and last outline point on each half-pixel line, in half pixels; low > high if it has none.
    """

    window_counts: Int32[Array, "5"]
    row_counts: Int[Array, "s"]
    column_counts: Int[Array, "s"]
    row_start: Int32[Array, "s"]
    offset_sum: Int[Array, "s"]
    offset_square_sum: Int[Array, "s"]
    low: Int32[Array, "2*s"]
    high: Int32[Array, "2*s"]


def count_matrices(
    pixels: Real[Array, "n s s"],
    level: UInt8[Array, "n s s"],
    *,
    n_levels: int,
    formulation: Formulation,
) -> Matrices:
    """The matrices of n regions, each array with a leading axis n.

    Args:
      pixels: uint8 grey values (with another dtype the histogram stays empty).
      level: 1 … `n_levels` inside the region, 0 outside and on the rim.
      n_levels: g.
      formulation: see `bincount`; the counts are the same.
    """
    inside = level > 0
    textures = functools.partial(_textures, n_levels=n_levels, formulation=formulation)
    glcm, glrlm, gldm, tone_difference = jax.vmap(textures)(level)
    return Matrices(
        histogram=jax.vmap(functools.partial(_histogram, formulation=formulation))(pixels, inside),
        level_counts=gldm.sum(2),
        glcm=glcm + glcm.transpose(0, 1, 3, 2),
        glrlm=glrlm,
        valid_directions=_find_valid_directions(inside, glcm.any((2, 3))),
        zones=zones.find_zones(level, n_levels=n_levels, formulation=formulation),
        gldm=gldm,
        tone_difference=tone_difference,
        outline=jax.vmap(_outline)(inside),
    )


def _textures(
    level: UInt8[Array, "s s"], *, n_levels: int, formulation: Formulation
) -> tuple[Int32[Array, "4 g g"], Int32[Array, "4 g r"], Int32[Array, "g 9"], Int32[Array, "g 9"]]:
    """(pairs, each in one order; runs; dependences; tone differences)."""
    own = level[1:-1, 1:-1]
    inside = own > 0
    near = {
        (dy, dx): level[1 + dy : len(level) - 1 + dy, 1 + dx : len(level) - 1 + dx]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if (dy, dx) != (0, 0)
    }
    row = own.astype(jnp.int16) - 1

    def count_by_level(
        used: Bool[Array, "m m"],
        columns: Integer[Array, "m m"],
        width: int,
        weight: Int32[Array, "m m"] | None = None,
    ) -> Int32[Array, "g {width}"]:
        index = row * width + columns.astype(jnp.int16)
        return bincount(index, used, n_levels * width, formulation, weight).reshape(n_levels, width)

    n_alike = sum(((own == x).astype(jnp.int16) for x in near.values()), jnp.zeros((), jnp.int16))
    n_around = sum(((x > 0).astype(jnp.int16) for x in near.values()), jnp.zeros((), jnp.int16))
    level_sum = sum((x.astype(jnp.int16) for x in near.values()), jnp.zeros((), jnp.int16))
    difference = jnp.abs(own * n_around - level_sum).astype(jnp.int32)
    return (
        jnp.stack(
            [
                count_by_level(inside & (near[d] > 0), near[d].astype(jnp.int16) - 1, n_levels)
                for d in DIRECTIONS
            ]
        ),
        runs.count_runs(level, n_levels=n_levels, formulation=formulation),
        count_by_level(inside, n_alike, 9),
        count_by_level(inside, n_around, 9, difference),
    )


def _histogram(
    pixels: Real[Array, "s s"], inside: Bool[Array, "s s"], formulation: Formulation
) -> Int32[Array, "256"]:
    if pixels.dtype != jnp.uint8:
        return jnp.zeros(256, jnp.int32)
    return bincount(pixels.astype(jnp.int16), inside, 256, formulation)


def _find_valid_directions(
    inside: Bool[Array, "n s s"], has_adjacent_pair: Bool[Array, "n 4"]
) -> Bool[Array, "n 4"]:
    """Whether some line of each direction contains two pixels of the region."""

    @jax.vmap
    def check_all_lines(inside: Bool[Array, "s s"]) -> Bool[Array, "4"]:
        pixels = inside.astype(jnp.int32)
        return jnp.stack([_line_sums(pixels, d).max() > 1 for d in DIRECTIONS])

    return jax.lax.cond(
        has_adjacent_pair.all(), lambda: has_adjacent_pair, lambda: check_all_lines(inside)
    )


def _line_sums(x: Int32[Array, "s s"], direction: tuple[int, int]) -> Int[Array, "lines"]:
    """Sums of a square array along all lines of one direction."""
    if direction == (0, 1):
        return x.sum(1)
    if direction == (1, 0):
        return x.sum(0)
    if direction == (1, 1):
        x = x[:, ::-1]
    # Reshaping the padded array to rows that are one shorter shifts row y by y places to the right.
    side = len(x)
    padded = jnp.pad(x, ((0, 0), (0, side))).ravel()[: side * (2 * side - 1)]
    return padded.reshape(side, 2 * side - 1).sum(0)


def _outline(inside: Bool[Array, "s s"]) -> Outline:
    right, below = neighbour(inside, (0, 1)), neighbour(inside, (1, 0))
    below_right = neighbour(inside, (1, 1))
    zero = jnp.zeros((), jnp.int8)
    n_inside = sum((x.astype(jnp.int8) for x in (inside, right, below, below_right)), zero)
    is_diagonal = (n_inside == 2) & (inside == below_right)
    window_kinds = (
        n_inside == 1,
        n_inside == 3,
        (n_inside == 2) & ~is_diagonal,
        is_diagonal,
        n_inside == 4,
    )
    x = jnp.arange(len(inside), dtype=jnp.int32)
    row_low, row_high = _first_and_last_columns(inside)
    half_low, half_high = _first_and_last_columns(inside != below)
    pixels = inside.astype(jnp.int32)
    row_start = jnp.where(inside.any(1), row_low, 0)
    offset = pixels * (x - row_start[:, None])
    return Outline(
        window_counts=jnp.stack([kind.sum(dtype=jnp.int32) for kind in window_kinds]),
        row_counts=pixels.sum(1),
        column_counts=pixels.sum(0),
        row_start=row_start,
        offset_sum=offset.sum(1),
        offset_square_sum=(offset**2).sum(1),
        # An outline point lies between a pixel inside and one outside.
        low=jnp.stack([2 * row_low - 1, 2 * half_low], 1).ravel(),
        high=jnp.stack([2 * row_high + 1, 2 * half_high], 1).ravel(),
    )


def _first_and_last_columns(
    flags: Bool[Array, "s s"],
) -> tuple[Int32[Array, "s"], Int32[Array, "s"]]:
    """First and last set column of each row; (s + 1, −2) for an empty row."""
    x = jnp.arange(len(flags), dtype=jnp.int32)
    return jnp.where(flags, x, len(flags) + 1).min(1), jnp.where(flags, x, -2).max(1)


def neighbour(x: Shaped[Array, "s s"], offset: tuple[int, int]) -> Shaped[Array, "s s"]:
    """x at (y + dy, x + dx) for each pixel of a tile; the values that wrap around come from its empty rim."""
    return jnp.roll(x, (-offset[0], -offset[1]), (0, 1))
