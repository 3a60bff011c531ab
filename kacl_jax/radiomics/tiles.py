"""From tiles to features on the device: counts, then formulas, for many regions at once.

A tile is a square cut of the image around one region, with grey levels 0 outside the region and an empty rim of one
pixel or more. Axes: n regions · s side of the tile · f radiomic features.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kacl_jax.radiomics import FAMILIES, FEATURE_NAMES
from kacl_jax.radiomics.counts import matrices
from kacl_jax.radiomics.counts.matrices import Formulation, Matrices
from kacl_jax.radiomics.families import firstorder, glcm, gldm, glrlm, glszm, ngtdm, shape2d

PROBLEMS = ("", "a line", "larger than the tile", "too many grey levels")


def features(
    pixels: jax.Array,
    level: jax.Array,
    *,
    levels: int,
    formulation: Formulation,
    used: jax.Array | None = None,
) -> jax.Array:
    """All features in the order of FEATURE_NAMES.

    Args:
      pixels: uint8 or float [n s s], grey values; what is outside the region plays no part.
      level: int [n s s], 0 outside the region and on the rim, else 1 … `levels`.
      levels: the highest level that may occur.
      formulation: see `matrices`. 'scatter' takes the regions one after the other (their tiles stay in the cache),
        'matmul' all together.
      used: int32, how many of the n are regions (the first ones); the others' features mean nothing.

    Returns:
      float [n f] of jax's default precision; NaN where pyradiomics gives NaN.
    """

    def count(pixels: jax.Array, level: jax.Array) -> Matrices:
        return matrices.count(pixels, level, levels=levels, formulation=formulation)

    if formulation == "matmul":
        counted = jax.vmap(count)(pixels, level)
    else:
        counted = _one_by_one(count, (pixels, level), used)
    return formulas(counted, pixels, level)


def formulas(counted: Matrices, pixels: jax.Array, level: jax.Array) -> jax.Array:
    """Features float [n f] from the counts of n regions; pixels and level as in `features`."""
    return jax.vmap(_formulas)(counted, pixels, level)


def _one_by_one(function: Any, arrays: tuple[jax.Array, ...], used: jax.Array | None) -> Any:
    n = len(arrays[0])

    def turn(row: jax.Array, results: Any) -> Any:
        result = function(*(x[row] for x in arrays))
        return jax.tree.map(lambda all_, one: all_.at[row].set(one), results, result)

    shapes = jax.eval_shape(function, *(x[0] for x in arrays))
    # Under shard_map what a loop carries must vary over the devices from the start, as the arrays do.
    zero = 0 * arrays[0].ravel()[0].astype(jnp.int32)
    empty = jax.tree.map(
        lambda one: jnp.zeros((n, *one.shape), one.dtype) + zero.astype(one.dtype), shapes
    )
    return jax.lax.fori_loop(0, n if used is None else used, turn, empty)


def _formulas(counted: Matrices, pixels: jax.Array, level: jax.Array) -> jax.Array:
    if pixels.dtype == jnp.uint8:
        first = firstorder.of_histogram(counted.histogram, counted.levels)
    else:
        first = firstorder.of_values(pixels, level > 0, counted.levels)
    found = {
        "shape2D": shape2d.features(counted.outline),
        "firstorder": first,
        "glcm": glcm.features(counted.glcm, counted.levels),
        "glrlm": glrlm.features(counted.glrlm, counted.lines),
        "glszm": glszm.features(counted.zones),
        "gldm": gldm.features(counted.gldm),
        "ngtdm": ngtdm.features(counted.levels, counted.difference),
    }
    named = {
        f"original_{family}_{name}": x for family in FAMILIES for name, x in found[family].items()
    }
    return jnp.stack([named[name] for name in FEATURE_NAMES])


def of_regions(
    images: jax.Array,
    masks: jax.Array,
    table: jax.Array,
    *,
    side: int,
    levels: int,
    formulation: Formulation,
) -> tuple[jax.Array, jax.Array]:
    """Features of one region per image, cropped, binned and counted on the device.

    Args:
      images: uint8 [n h w].
      masks: bool [n h w].
      table: uint8 [256 256] from `bins.table`.
      side: of the tile.
      levels: the highest grey level that can be counted.
      formulation: see `matrices`.

    Returns:
      (float [n f], int32 [n]): what is wrong with a region, a place in `PROBLEMS`, 0 for nothing; its features are
      zeros then.
    """

    def cropped(image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        (top, height), (left, width) = _interval(mask.any(1)), _interval(mask.any(0))
        low = jnp.where(mask, image, 255).min()
        level = jnp.where(mask, table[low][image], 0)
        wrong = [
            jnp.minimum(height, width) < 2,
            jnp.maximum(height, width) + 2 > side,
            level.max() > levels,
        ]

        def cut(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(jnp.pad(x, (1, side)), (top, left), (side, side))

        # A larger region is cut off by the rim; it is not ready.
        rim = jnp.pad(jnp.ones((side - 2, side - 2), bool), 1)
        tile = jnp.where(rim, jnp.minimum(cut(level), levels), 0)
        return cut(image), tile, jnp.select(wrong, [1, 2, 3], 0)

    pixels, level, problem = jax.vmap(cropped)(images, masks)
    found = features(pixels, level, levels=levels, formulation=formulation)
    return jnp.where((problem == 0)[:, None], found, 0), problem


def _interval(flags: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First set flag and the distance to the last, plus one: int32 scalars."""
    place = jnp.arange(len(flags), dtype=jnp.int32)
    first = jnp.where(flags, place, len(flags)).min()
    return jnp.minimum(first, len(flags) - 1), jnp.where(flags, place, -1).max() - first + 1
