"""Features of many tiles at once on the device: counts first, then formulas.

A tile is a square part of the image around one region, with grey level 0 outside of the region and an empty rim of one
pixel or more. Axes: n regions · s side of the tile · f radiomic features.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer, Real, Shaped, UInt8

from kacl_jax.radiomics import FAMILIES, FEATURE_NAMES
from kacl_jax.radiomics.counts import matrices
from kacl_jax.radiomics.counts.matrices import Formulation, Matrices
from kacl_jax.radiomics.families import firstorder, glcm, gldm, glrlm, glszm, ngtdm, shape2d

PROBLEMS = ("", "a line", "larger than the tile", "too many grey levels")


def features(
    pixels: Real[Array, "n s s"],
    level: Integer[Array, "n s s"],
    *,
    n_levels: int,
    formulation: Formulation,
    used: Int32[Array, ""] | None = None,
) -> Float[Array, "n f"]:
    """All features in the order of FEATURE_NAMES.

    Args:
      pixels: uint8 or float, grey values; those outside of the region have no influence.
      level: grey levels 1 … `n_levels` inside the region, 0 outside and on the rim.
      n_levels: the highest grey level that may occur.
      formulation: see `matrices`. 'scatter' computes the regions one after the other (their tiles stay in the cache),
        'matmul' all together.
      used: how many of the n tiles hold a region (the first ones); the features of the others are undefined.

    Returns:
      the features in jax's default precision; NaN where pyradiomics gives NaN.
    """

    def count_one(pixels: Real[Array, "s s"], level: Integer[Array, "s s"]) -> Matrices:
        return matrices.count_matrices(pixels, level, n_levels=n_levels, formulation=formulation)

    if formulation == "matmul":
        counts = jax.vmap(count_one)(pixels, level)
    else:
        counts = _map_sequentially(count_one, (pixels, level), used)
    return features_from_counts(counts, pixels, level)


def features_from_counts(
    counts: Matrices, pixels: Real[Array, "n s s"], level: Integer[Array, "n s s"]
) -> Float[Array, "n f"]:
    """Features from the counts of n regions, each array with a leading axis n; pixels and level as in `features`."""
    return jax.vmap(_features_of_region)(counts, pixels, level)


def _map_sequentially(function: Any, arrays: tuple[Array, ...], used: Array | None) -> Any:
    n = len(arrays[0])

    def update_row(row: Array, results: Any) -> Any:
        result = function(*(x[row] for x in arrays))
        return jax.tree.map(
            lambda stacked, row_result: stacked.at[row].set(row_result), results, result
        )

    shapes = jax.eval_shape(function, *(x[0] for x in arrays))
    # Under shard_map the loop state must vary over the devices from the start, as the arrays do: hence "+ zero".
    zero = 0 * arrays[0].ravel()[0].astype(jnp.int32)
    empty = jax.tree.map(
        lambda row_result: (
            jnp.zeros((n, *row_result.shape), row_result.dtype) + zero.astype(row_result.dtype)
        ),
        shapes,
    )
    return jax.lax.fori_loop(0, n if used is None else used, update_row, empty)


def _features_of_region(
    counts: Matrices, pixels: Real[Array, "s s"], level: Integer[Array, "s s"]
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
) -> tuple[Float[Array, "n f"], Int32[Array, "n"]]:
    """Features of one region per image, cropped, binned and counted on the device.

    Args:
      level_table: from `bins.level_table`.
      side: of the tile.
      n_levels: the highest grey level that can be counted.
      formulation: see `matrices`.

    Returns:
      (features, problem). problem is an index into `PROBLEMS`: 0 for none, else why the region
      has no features; these are zeros then.
    """

    def crop_to_tile(
        image: UInt8[Array, "h w"], mask: Bool[Array, "h w"]
    ) -> tuple[UInt8[Array, "s s"], Integer[Array, "s s"], Int32[Array, ""]]:
        (top, height), (left, width) = _extent(mask.any(1)), _extent(mask.any(0))
        low = jnp.where(mask, image, 255).min()
        level = jnp.where(mask, level_table[low][image], 0)
        has_problem = [
            jnp.minimum(height, width) < 2,
            jnp.maximum(height, width) + 2 > side,
            level.max() > n_levels,
        ]

        def cut_tile(x: Shaped[Array, "h w"]) -> Shaped[Array, "s s"]:
            return jax.lax.dynamic_slice(jnp.pad(x, (1, side)), (top, left), (side, side))

        # A region larger than the tile is cut off at the rim; its problem is not 0.
        inside_rim = jnp.pad(jnp.ones((side - 2, side - 2), bool), 1)
        tile = jnp.where(inside_rim, jnp.minimum(cut_tile(level), n_levels), 0)
        return cut_tile(image), tile, jnp.select(has_problem, [1, 2, 3], 0)

    pixels, level, problem = jax.vmap(crop_to_tile)(images, masks)
    values = features(pixels, level, n_levels=n_levels, formulation=formulation)
    return jnp.where((problem == 0)[:, None], values, 0), problem


def _extent(flags: Bool[Array, "n"]) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Index of the first set flag, and the length from it to the last one, both included."""
    index = jnp.arange(len(flags), dtype=jnp.int32)
    first = jnp.where(flags, index, len(flags)).min()
    return jnp.minimum(first, len(flags) - 1), jnp.where(flags, index, -1).max() - first + 1
