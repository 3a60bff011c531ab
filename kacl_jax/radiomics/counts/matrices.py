"""What is counted in a region: every matrix behind the features, in exact integers.

The region lies in a square tile with an empty rim of at least one pixel, so that a neighbour is found by rolling the
tile. Grey levels are 1 … g inside the region and 0 outside. Everything counted here is an integer, so any order of
summation gives the same bits; only *how* it is counted depends on the platform:

* ``scatter``, for CPU: one scatter-add per matrix; room for zones is small where the region has few.
* ``matmul``, for accelerators: a histogram is the product of two one-hot matrices.

Axes: s side of the tile · g grey levels · r run lengths · z large zones.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kacl_jax.radiomics.counts import zones
from kacl_jax.radiomics.counts.zones import Zones, neighbour

Formulation = Literal["scatter", "matmul"]

# One of each pair of opposite neighbours at distance 1: the four directions of a 2-D image.
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))

_OTHERS = 16


class Matrices(NamedTuple):
    """All int32.

    histogram: [256] pixels by 8-bit grey value; zeros for other images.
    levels: [g] pixels by grey level.
    glcm: [4 g g] symmetric, by direction. glrlm: [4 g r] runs by level and length − 1.
    lines: bool [4], whether some line in that direction meets two pixels of the region.
    zones: see `zones.Zones`. gldm: [g 9] pixels by level and number of like neighbours.
    difference: [g 9] Σ |level · n − Σ neighbours' levels| by level and number n of neighbours inside.
    outline: see `Outline`.
    """

    histogram: jax.Array
    levels: jax.Array
    glcm: jax.Array
    glrlm: jax.Array
    lines: jax.Array
    zones: Zones
    gldm: jax.Array
    difference: jax.Array
    outline: Outline


class Outline(NamedTuple):
    """The region's mask in integers.

    windows: [5] 2×2 windows with one or three pixels inside (0: one, 1: three), two side by side (2), two on a
      diagonal (3), all four (4).
    rows, columns: [s] pixels in each row and column.
    start: [s] x of each row's first pixel, 0 in an empty row. along, along_squared: [s] Σ (x − start)^{1, 2} over a
      row's pixels.
    low, high: [2s] first and last outline point on each half-pixel line, in half pixels; low > high where none.
    """

    windows: jax.Array
    rows: jax.Array
    columns: jax.Array
    start: jax.Array
    along: jax.Array
    along_squared: jax.Array
    low: jax.Array
    high: jax.Array


def count(
    pixels: jax.Array, level: jax.Array, *, levels: int, formulation: Formulation
) -> Matrices:
    """All matrices of one region.

    Args:
      pixels: uint8 [s s] grey values (another dtype: the histogram stays empty).
      level: int [s s], 1 … `levels` inside the region, 0 outside and on the rim.
      levels: g.
      formulation: 'scatter' or 'matmul'; the counts are the same.
    """
    side = len(level)
    level = level.astype(jnp.int16)
    inside = level > 0
    links = [inside & (level == neighbour(level, d)) for d in DIRECTIONS]
    ahead = [_links_ahead(link, d) for link, d in zip(links, DIRECTIONS, strict=True)]
    row = level.astype(jnp.int32) - 1

    def table(
        used: jax.Array, columns: jax.Array, width: int, weight: jax.Array | None = None
    ) -> jax.Array:
        index = row * width + columns.astype(jnp.int32)
        return bincount(index, used, levels * width, formulation, weight).reshape(levels, width)

    glcm = [table(inside & neighbour(inside, d), neighbour(row, d), levels) for d in DIRECTIONS]
    glrlm = [
        table(inside & ~_behind(link, d), steps, side)
        for link, d, steps in zip(links, DIRECTIONS, ahead, strict=True)
    ]
    nothing = jnp.zeros((), jnp.int16)
    like = sum(
        (
            link.astype(jnp.int16) + _behind(link, d).astype(jnp.int16)
            for link, d in zip(links, DIRECTIONS, strict=True)
        ),
        nothing,
    )
    around = _around(inside.astype(jnp.int16))
    difference = jnp.abs(level * around - _around(level)).astype(jnp.int32)
    gldm = table(inside, like, 9)
    symmetric = jnp.stack(glcm)
    return Matrices(
        histogram=_histogram(pixels, inside, formulation),
        levels=gldm.sum(1),
        glcm=symmetric + symmetric.transpose(0, 2, 1),
        glrlm=jnp.stack(glrlm),
        lines=_meets_two(inside),
        zones=zones.find(level, links, ahead[0], levels=levels, compact=formulation == "scatter"),
        gldm=gldm,
        difference=table(inside, around, 9, difference),
        outline=_outline(inside),
    )


def bincount(
    index: jax.Array,
    used: jax.Array,
    length: int,
    formulation: Formulation,
    weight: jax.Array | None = None,
) -> jax.Array:
    """How often each of 0 … length − 1 occurs in `index` where `used`: int32 [length].

    weight: ints in 0 … 4095 to add instead of 1; what each of its two halves adds up to must stay below 2²⁴.
    """
    index, used = index.ravel(), used.ravel()
    if formulation == "scatter":
        # The others go to many places: adding to one and the same waits for the addition before it.
        others = length + jnp.arange(len(index), dtype=jnp.int32) % _OTHERS
        ones = jnp.ones((), jnp.int32) if weight is None else weight.ravel()
        counts = jnp.zeros(length + _OTHERS, jnp.int32)
        return counts.at[jnp.where(used, index, others)].add(ones)[:length]
    width = max(1, round(length**0.5))
    height = -(-length // width)
    high = _one_hot(jnp.where(used, index // width, height), height)
    low = _one_hot(index % width, width)
    if weight is None:
        return _product(high, low).ravel()[:length]
    # bfloat16 holds 8 bits: the weight goes in two parts.
    weight = weight.ravel()[:, None]
    parts = [_product(high, low * part.astype(low.dtype)) for part in (weight // 64, weight % 64)]
    return (parts[0] * 64 + parts[1]).ravel()[:length]


def _one_hot(index: jax.Array, n: int) -> jax.Array:
    return jax.nn.one_hot(index, n, dtype=jnp.bfloat16)


def _product(high: jax.Array, low: jax.Array) -> jax.Array:
    """Σ over pixels: exact, for float32 accumulates integers below 2²⁴."""
    total = jax.lax.dot_general(
        high, low, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return total.astype(jnp.int32)


def _histogram(pixels: jax.Array, inside: jax.Array, formulation: Formulation) -> jax.Array:
    if pixels.dtype != jnp.uint8:
        return jnp.zeros(256, jnp.int32)
    return bincount(pixels.astype(jnp.int32), inside, 256, formulation)


def _behind(link: jax.Array, direction: tuple[int, int]) -> jax.Array:
    """Whether the pixel one step back links to this one."""
    return neighbour(link, (-direction[0], -direction[1]))


def _links_ahead(link: jax.Array, direction: tuple[int, int]) -> jax.Array:
    """How many links follow each other from each pixel on: bool → int16 [s s], by doubling."""
    if direction == (1, 0):
        # XLA's CPU backend would compute every step anew in the next one, unless columns move.
        return _links_ahead(link.T, (0, 1)).T
    ahead = link.astype(jnp.int16)
    step = 1
    while step < len(link):
        further = neighbour(ahead, (direction[0] * step, direction[1] * step))
        ahead = ahead + jnp.where(ahead == step, further, 0)
        step *= 2
    return ahead


def _around(x: jax.Array) -> jax.Array:
    """Sum over the eight neighbours."""
    rows = x + neighbour(x, (0, 1)) + neighbour(x, (0, -1))
    return rows + neighbour(rows, (1, 0)) + neighbour(rows, (-1, 0)) - x


def _meets_two(inside: jax.Array) -> jax.Array:
    """Whether some line of each direction meets two pixels of the region: bool [4]."""
    touching = jnp.stack([(inside & neighbour(inside, d)).any() for d in DIRECTIONS])

    def sums() -> jax.Array:
        pixels = inside.astype(jnp.int32)
        return jnp.stack([_line_sums(pixels, d).max() > 1 for d in DIRECTIONS])

    return jax.lax.cond(touching.all(), lambda: touching, sums)


def _line_sums(x: jax.Array, direction: tuple[int, int]) -> jax.Array:
    """Sums of a square array along all lines of one direction."""
    if direction == (0, 1):
        return x.sum(1)
    if direction == (1, 0):
        return x.sum(0)
    if direction == (1, 1):
        x = x[:, ::-1]
    # Row y moves y places to the right when the padded array is cut one column narrower.
    side = len(x)
    wide = jnp.pad(x, ((0, 0), (0, side))).ravel()[: side * (2 * side - 1)]
    return wide.reshape(side, 2 * side - 1).sum(0)


def _outline(inside: jax.Array) -> Outline:
    right, below = neighbour(inside, (0, 1)), neighbour(inside, (1, 0))
    across = neighbour(inside, (1, 1))
    nothing = jnp.zeros((), jnp.int8)
    number = sum((x.astype(jnp.int8) for x in (inside, right, below, across)), nothing)
    diagonal = (number == 2) & (inside == across)
    kinds = (number == 1, number == 3, (number == 2) & ~diagonal, diagonal, number == 4)
    x = jnp.arange(len(inside), dtype=jnp.int32)
    row_low, row_high = _extremes(inside)
    half_low, half_high = _extremes(inside != below)
    pixels = inside.astype(jnp.int32)
    start = jnp.where(inside.any(1), row_low, 0)
    along = pixels * (x - start[:, None])
    return Outline(
        windows=jnp.stack([kind.sum(dtype=jnp.int32) for kind in kinds]),
        rows=pixels.sum(1),
        columns=pixels.sum(0),
        start=start,
        along=along.sum(1),
        along_squared=(along**2).sum(1),
        # An outline point lies between a pixel inside and one outside.
        low=jnp.stack([2 * row_low - 1, 2 * half_low], 1).ravel(),
        high=jnp.stack([2 * row_high + 1, 2 * half_high], 1).ravel(),
    )


def _extremes(flags: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and last column that is set in each row: int32 [s] each; (s + 1, −2) in an empty row."""
    x = jnp.arange(len(flags), dtype=jnp.int32)
    return jnp.where(flags, x, len(flags) + 1).min(1), jnp.where(flags, x, -2).max(1)
