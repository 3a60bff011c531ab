"""Features of many tiles at once on the device: counts first, then formulas.

A tile is a square part of the image around one region, with grey level 0 outside of the region and an empty rim of one
pixel or more. Axes: n regions · s side of the tile · f radiomic features.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Real, UInt8

from kacl_jax.radiomics import FAMILIES, FEATURE_NAMES
from kacl_jax.radiomics.counts import matrices
from kacl_jax.radiomics.counts.bincount import Formulation
from kacl_jax.radiomics.counts.matrices import Matrices
from kacl_jax.radiomics.families import firstorder, glcm, gldm, glrlm, glszm, ngtdm, shape2d

PROBLEMS = ("", "a line", "larger than the tile", "too many grey levels")


def features(
    pixels: Real[Array, "n s s"],
    level: UInt8[Array, "n s s"],
    *,
    n_levels: int,
    formulation: Formulation,
    one_by_one: bool = False,
    used: Int32[Array, ""] | None = None,
) -> Float[Array, "n f"]:
    """All features in the order of FEATURE_NAMES, in jax's default precision; NaN where pyradiomics gives NaN.

    pixels, level and the rest: as in `count`.
    """
    counts = count(
        pixels,
        level,
        n_levels=n_levels,
        formulation=formulation,
        one_by_one=one_by_one,
        used=used,
    )
    return features_from_counts(counts, pixels, level)


def count(
    pixels: Real[Array, "n s s"],
    level: UInt8[Array, "n s s"],
    *,
    n_levels: int,
    formulation: Formulation,
    one_by_one: bool = False,
    used: Int32[Array, ""] | None = None,
) -> Matrices:
    """The matrices of n regions, each array with a leading axis n.

    Args:
      pixels: uint8 or float, grey values; those outside of the region have no influence.
      level: grey levels 1 … `n_levels` inside the region, 0 outside and on the rim.
      n_levels: the highest grey level that may occur.
      formulation: see `bincount`.
      one_by_one: one region after the other, so that their tiles stay in a CPU's cache.
      used: with `one_by_one`, how many of the n tiles hold a region (the first ones); the others' counts are undefined.
    """
    of_regions = functools.partial(
        matrices.count_matrices, n_levels=n_levels, formulation=formulation
    )
    if one_by_one:
        counts: Matrices = _map_sequentially(of_regions, (pixels, level), used)
        return counts
    return of_regions(pixels, level)


def features_from_counts(
    counts: Matrices, pixels: Real[Array, "n s s"], level: UInt8[Array, "n s s"]
) -> Float[Array, "n f"]:
    """Features from the counts of n regions; pixels and level as in `count`."""
    return jax.vmap(_features_of_region)(counts, pixels, level)


def _map_sequentially(function: Any, arrays: tuple[Array, ...], used: Array | None) -> Any:
    n = len(arrays[0])

    def update_row(row: Array, results: Any) -> Any:
        result = function(*(x[row][None] for x in arrays))
        return jax.tree.map(
            lambda stacked, row_result: stacked.at[row].set(row_result[0]), results, result
        )

    shapes = jax.eval_shape(function, *(x[:1] for x in arrays))
    # Under shard_map the loop state must vary over the devices from the start, as the arrays do: hence "+ zero".
    zero = 0 * arrays[0].ravel()[0].astype(jnp.int32)
    empty = jax.tree.map(
        lambda row_result: (
            jnp.zeros((n, *row_result.shape[1:]), row_result.dtype) + zero.astype(row_result.dtype)
        ),
        shapes,
    )
    return jax.lax.fori_loop(0, n if used is None else used, update_row, empty)


def _features_of_region(
    counts: Matrices, pixels: Real[Array, "s s"], level: UInt8[Array, "s s"]
) -> Float[Array, "f"]:
    if pixels.dtype == jnp.uint8:
        firstorder_values = firstorder.features_of_histogram(counts.histogram, counts.level_counts)
    else:
        firstorder_values = firstorder.features_of_values(pixels, level > 0, counts.level_counts)
    by_family = {
        "shape2D": shape2d.features(counts.outline),
        "firstorder": firstorder_values,
        "glcm": glcm.features(counts.glcm, counts.level_counts),
        "glrlm": glrlm.features(counts.glrlm, counts.valid_directions),
        "glszm": glszm.features(counts.zones),
        "gldm": gldm.features(counts.gldm),
        "ngtdm": ngtdm.features(counts.level_counts, counts.tone_difference),
    }
    by_name = {
        f"original_{family}_{name}": x
        for family in FAMILIES
        for name, x in by_family[family].items()
    }
    return jnp.stack([by_name[name] for name in FEATURE_NAMES])


def region_features(
    images: UInt8[Array, "n h w"],
    masks: Bool[Array, "n h w"],
    level_table: UInt8[Array, "256 256"],
    *,
    side: int,
    n_levels: int,
    formulation: Formulation,
    one_by_one: bool = False,
) -> tuple[Float[Array, "n f"], Int32[Array, "n"]]:
    """Features of one region per image, cropped, binned and counted on the device.

    Args:
      level_table, side, n_levels: see `crop_and_bin`.
      formulation, one_by_one: see `count`.

    Returns:
      (features, problem). problem is an index into `PROBLEMS`: 0 for none, else why the region
      has no features; these are zeros then.
    """
    pixels, level, problem = crop_and_bin(images, masks, level_table, side=side, n_levels=n_levels)
    values = features(
        pixels, level, n_levels=n_levels, formulation=formulation, one_by_one=one_by_one
    )
    return jnp.where((problem == 0)[:, None], values, 0), problem


def crop_and_bin(
    images: UInt8[Array, "n h w"],
    masks: Bool[Array, "n h w"],
    level_table: UInt8[Array, "256 256"],
    *,
    side: int,
    n_levels: int,
) -> tuple[UInt8[Array, "n {side} {side}"], UInt8[Array, "n {side} {side}"], Int32[Array, "n"]]:
    """(pixels, level, problem): the tile of each region, and its index into `PROBLEMS`.

    Args:
      level_table: from `bins.level_table`.
      side: of the tile.
      n_levels: the highest grey level that can be counted.
    """

    def crop_to_tile(
        image: UInt8[Array, "h w"], mask: Bool[Array, "h w"]
    ) -> tuple[UInt8[Array, "s s"], UInt8[Array, "s s"], Int32[Array, ""]]:
        (top, height), (left, width) = _extent(mask.any(1)), _extent(mask.any(0))
        low, high = jnp.where(mask, image, 255).min(), jnp.where(mask, image, 0).max()
        has_problem = [
            jnp.minimum(height, width) < 2,
            jnp.maximum(height, width) + 2 > side,
            level_table[low, high] > n_levels,
        ]
        # A region larger than the tile is cut off at the rim; its problem is not 0.
        grey = jnp.where(mask, image.astype(jnp.int16), -1)
        grey = jnp.pad(grey, (1, side), constant_values=-1)
        grey = jax.lax.dynamic_slice(grey, (top, left), (side, side))[1:-1, 1:-1]
        # The barrier keeps XLA from cutting the tile once more for each level.
        grey = jax.lax.optimization_barrier(jnp.pad(grey, 1, constant_values=-1))
        # The level is how many of the levels' smallest grey values are not above the pixel's.
        levels = jnp.arange(1, n_levels + 1)[:, None]
        smallest = (level_table[low] < levels).sum(1).astype(jnp.int16)
        level = sum(((grey >= x).astype(jnp.uint8) for x in smallest), jnp.zeros((), jnp.uint8))
        return grey.astype(jnp.uint8), level, jnp.select(has_problem, [1, 2, 3], 0)

    return jax.vmap(crop_to_tile)(images, masks)


def _extent(flags: Bool[Array, "n"]) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Index of the first set flag, and the length from it to the last one, both included."""
    index = jnp.arange(len(flags), dtype=jnp.int32)
    first = jnp.where(flags, index, len(flags)).min()
    return jnp.minimum(first, len(flags) - 1), jnp.where(flags, index, -1).max() - first + 1
