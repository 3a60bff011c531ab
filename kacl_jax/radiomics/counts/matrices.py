"""The matrices from which the features of a region are computed, as exact integer counts.

The region lies in a square tile with an empty rim of at least one pixel, so that a neighbour is found by rolling the
tile. Grey levels are 1 … g inside the region and 0 outside. All counts are integers, so any order of summation gives
the same bits. Only the method of counting (the formulation) depends on the platform:

* ``scatter``, for CPU: one scatter-add per matrix; the arrays for zones are small if the region has few runs.
* ``matmul``, for accelerators: a histogram is the product of two one-hot matrices.

Axes: s side of the tile · g grey levels · r run lengths · z large zones.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Bool, Int, Int16, Int32, Integer, Real

from kacl_jax.radiomics.counts import zones
from kacl_jax.radiomics.counts.zones import Zones, neighbour

Formulation = Literal["scatter", "matmul"]

# (dy, dx) of one of each pair of opposite neighbours at distance 1: the four directions of a 2-D image.
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))

_EXTRA_BINS = 16


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
    pixels: Real[Array, "s s"],
    level: Integer[Array, "s s"],
    *,
    n_levels: int,
    formulation: Formulation,
) -> Matrices:
    """All matrices of one region.

    Args:
      pixels: uint8 grey values (with another dtype the histogram stays empty).
      level: 1 … `n_levels` inside the region, 0 outside and on the rim.
      n_levels: g.
      formulation: 'scatter' or 'matmul'; the counts are the same.
    """
    side = len(level)
    level = level.astype(jnp.int16)
    inside = level > 0
    links = [inside & (level == neighbour(level, d)) for d in DIRECTIONS]
    ahead = [_links_ahead(link, d) for link, d in zip(links, DIRECTIONS, strict=True)]
    level_row = level.astype(jnp.int32) - 1

    def count_by_level(
        used: Bool[Array, "s s"],
        columns: Int[Array, "s s"],
        width: int,
        weight: Int32[Array, "s s"] | None = None,
    ) -> Int32[Array, "g {width}"]:
        index = level_row * width + columns.astype(jnp.int32)
        return bincount(index, used, n_levels * width, formulation, weight).reshape(n_levels, width)

    glcm = [
        count_by_level(inside & neighbour(inside, d), neighbour(level_row, d), n_levels)
        for d in DIRECTIONS
    ]
    glrlm = [
        count_by_level(inside & ~_linked_from_behind(link, d), run_length, side)
        for link, d, run_length in zip(links, DIRECTIONS, ahead, strict=True)
    ]
    zero = jnp.zeros((), jnp.int16)
    n_alike = sum(
        (
            link.astype(jnp.int16) + _linked_from_behind(link, d).astype(jnp.int16)
            for link, d in zip(links, DIRECTIONS, strict=True)
        ),
        zero,
    )
    n_around = _neighbour_sum(inside.astype(jnp.int16))
    tone_difference = jnp.abs(level * n_around - _neighbour_sum(level)).astype(jnp.int32)
    gldm = count_by_level(inside, n_alike, 9)
    pairs = jnp.stack(glcm)
    return Matrices(
        histogram=_histogram(pixels, inside, formulation),
        level_counts=gldm.sum(1),
        glcm=pairs + pairs.transpose(0, 2, 1),
        glrlm=jnp.stack(glrlm),
        valid_directions=_find_valid_directions(inside),
        zones=zones.find_zones(
            level, links, ahead[0], n_levels=n_levels, compact=formulation == "scatter"
        ),
        gldm=gldm,
        tone_difference=count_by_level(inside, n_around, 9, tone_difference),
        outline=_outline(inside),
    )


def bincount(
    index: Int32[Array, "*shape"],
    used: Bool[Array, "*shape"],
    length: int,
    formulation: Formulation,
    weight: Int32[Array, "*shape"] | None = None,
) -> Int32[Array, "{length}"]:
    """How often each of 0 … length − 1 occurs in `index` where `used`.

    weight: ints in 0 … 4095 to add instead of 1. Each sum of weight // 64 and of weight % 64 must stay below 2²⁴.
    """
    index, used = index.ravel(), used.ravel()
    if formulation == "scatter":
        # Unused entries are spread over several extra bins, because additions to a single bin wait for each other.
        extra_bins = length + jnp.arange(len(index), dtype=jnp.int32) % _EXTRA_BINS
        increments = jnp.ones((), jnp.int32) if weight is None else weight.ravel()
        counts = jnp.zeros(length + _EXTRA_BINS, jnp.int32)
        return counts.at[jnp.where(used, index, extra_bins)].add(increments)[:length]
    width = max(1, round(length**0.5))
    height = -(-length // width)
    high = _one_hot(jnp.where(used, index // width, height), height)
    low = _one_hot(index % width, width)
    if weight is None:
        return _product(high, low).ravel()[:length]
    # bfloat16 has 8 significant bits, so the weight is split into two parts.
    weight = weight.ravel()[:, None]
    parts = [_product(high, low * part.astype(low.dtype)) for part in (weight // 64, weight % 64)]
    return (parts[0] * 64 + parts[1]).ravel()[:length]


def _one_hot(index: Int32[Array, "pixels"], n: int) -> BFloat16[Array, "pixels {n}"]:
    return jax.nn.one_hot(index, n, dtype=jnp.bfloat16)


def _product(
    high: BFloat16[Array, "pixels high"], low: BFloat16[Array, "pixels low"]
) -> Int32[Array, "high low"]:
    """Σ over pixels, exact because float32 represents all integers below 2²⁴."""
    total = jax.lax.dot_general(
        high, low, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return total.astype(jnp.int32)


def _histogram(
    pixels: Real[Array, "s s"], inside: Bool[Array, "s s"], formulation: Formulation
) -> Int32[Array, "256"]:
    if pixels.dtype != jnp.uint8:
        return jnp.zeros(256, jnp.int32)
    return bincount(pixels.astype(jnp.int32), inside, 256, formulation)


def _linked_from_behind(link: Bool[Array, "s s"], direction: tuple[int, int]) -> Bool[Array, "s s"]:
    """Whether the pixel one step back has a link to this one."""
    return neighbour(link, (-direction[0], -direction[1]))


def _links_ahead(link: Bool[Array, "s s"], direction: tuple[int, int]) -> Int16[Array, "s s"]:
    """Number of consecutive links that start at each pixel, by doubling."""
    if direction == (1, 0):
        # Transposed, because XLA's CPU backend recomputes every earlier step in the next one unless columns are rolled.
        return _links_ahead(link.T, (0, 1)).T
    ahead = link.astype(jnp.int16)
    step = 1
    while step < len(link):
        further = neighbour(ahead, (direction[0] * step, direction[1] * step))
        ahead = ahead + jnp.where(ahead == step, further, 0)
        step *= 2
    return ahead


def _neighbour_sum(x: Int16[Array, "s s"]) -> Int16[Array, "s s"]:
    """Sum over the eight neighbours."""
    rows = x + neighbour(x, (0, 1)) + neighbour(x, (0, -1))
    return rows + neighbour(rows, (1, 0)) + neighbour(rows, (-1, 0)) - x


def _find_valid_directions(inside: Bool[Array, "s s"]) -> Bool[Array, "4"]:
    """Whether some line of each direction contains two pixels of the region."""
    has_adjacent_pair = jnp.stack([(inside & neighbour(inside, d)).any() for d in DIRECTIONS])

    def check_all_lines() -> Bool[Array, "4"]:
        pixels = inside.astype(jnp.int32)
        return jnp.stack([_line_sums(pixels, d).max() > 1 for d in DIRECTIONS])

    return jax.lax.cond(has_adjacent_pair.all(), lambda: has_adjacent_pair, check_all_lines)


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
