"""The counts of `matrices` on the CPU by numba: one pass over the pixels of each region instead of one per matrix.

The counts are the same integers, so the features are the same. It is several times faster and needs no compilation by
XLA for each tile side. numba is optional (`pip install numba`); `extract` uses this file if numba is installed and the
default device is a CPU.

Axes: n regions · s side of the tile · g grey levels.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from jaxtyping import Real, UInt8

from kacl_jax.radiomics.counts.matrices import Matrices, Outline
from kacl_jax.radiomics.counts.zones import SMALL_LIMIT, Zones, max_large_zones


def count_matrices(
    pixels: Real[np.ndarray, "n s s"], level: UInt8[np.ndarray, "n s s"], *, n_levels: int
) -> Matrices:
    """The matrices of n regions as numpy arrays, each with a leading axis n.

    pixels: uint8 (with another dtype the histogram stays empty). level: 1 … `n_levels` inside the region, 0 outside and
    on the rim.
    """
    _check_tiles(pixels, level, n_levels)
    n, side, _ = level.shape

    def zeros(*shape: int) -> Any:
        return np.zeros((n, *shape), np.int32)

    max_large = max_large_zones(side * side)
    matrices = Matrices(
        histogram=zeros(256),
        level_counts=zeros(n_levels),
        glcm=zeros(4, n_levels, n_levels),
        glrlm=zeros(4, n_levels, side),
        valid_directions=zeros(4),
        zones=Zones(
            small=zeros(n_levels, SMALL_LIMIT),
            large_level=zeros(max_large),
            large_size=zeros(max_large),
        ),
        gldm=zeros(n_levels, 9),
        tone_difference=zeros(n_levels, 9),
        outline=Outline(
            window_counts=zeros(5),
            row_counts=zeros(side),
            column_counts=zeros(side),
            row_start=zeros(side),
            offset_sum=zeros(side),
            offset_square_sum=zeros(side),
            low=zeros(2 * side),
            high=zeros(2 * side),
        ),
    )
    for region in range(n):
        _count_textures(
            level[region],
            matrices.glcm[region],
            matrices.glrlm[region],
            matrices.gldm[region],
            matrices.tone_difference[region],
        )
        _count_zones(level[region], *(x[region] for x in matrices.zones))
        _count_outline(
            level[region], matrices.valid_directions[region], *(x[region] for x in matrices.outline)
        )
        if pixels.dtype == np.uint8:
            _count_histogram(pixels[region], level[region], matrices.histogram[region])
    symmetric = matrices.glcm + matrices.glcm.transpose(0, 1, 3, 2)
    level_counts: Any = matrices.gldm.sum(2)
    return matrices._replace(
        level_counts=level_counts.astype(np.int32),
        glcm=symmetric,
        valid_directions=matrices.valid_directions.astype(bool),
    )


def _check_tiles(pixels: np.ndarray, level: np.ndarray, n_levels: int) -> None:
    """The compiled loops do not check their indices. What is checked here keeps all of them inside of the arrays."""
    is_square = level.ndim == 3 and level.shape[1] == level.shape[2]
    if level.dtype != np.uint8 or not is_square or pixels.shape != level.shape:
        raise ValueError(
            f"expected uint8 levels and pixels of one shape [n s s], got {level.dtype} {level.shape} and {pixels.shape}"
        )
    if level.max(initial=0) > n_levels:
        raise ValueError(f"there is level {level.max()}; {n_levels} can be counted")
    if level[:, [0, -1]].any() or level[:, :, [0, -1]].any():
        raise ValueError("there is a level on the rim of a tile")


@numba.njit(cache=True, nogil=True)
def _count_histogram(pixels, level, histogram):  # type: ignore[no-untyped-def]
    side = len(level)
    for y in range(1, side - 1):
        for x in range(1, side - 1):
            if level[y, x]:
                histogram[pixels[y, x]] += 1


@numba.njit(cache=True, nogil=True)
def _count_textures(level, glcm, glrlm, gldm, difference):  # type: ignore[no-untyped-def]
    """Pairs, runs and neighbourhoods. Directions as in matrices.DIRECTIONS: right, down, down right, down left.

    nYX is the level of the pixel in row Y and column X of the 3×3 neighbourhood.
    """
    side = len(level)
    # Length of the run that ends at each pixel, for the directions 1 … 3, in this row and the row above.
    run_length = np.zeros((2, 3, side), np.int32)
    for y in range(1, side - 1):
        length_above, length_here = run_length[(y - 1) % 2], run_length[y % 2]
        length_right = 0
        for x in range(1, side - 1):
            own = level[y, x]
            if own == 0:
                length_here[:, x] = 0
                length_right = 0
                continue
            n00, n01, n02 = level[y - 1, x - 1], level[y - 1, x], level[y - 1, x + 1]
            n10, n12 = level[y, x - 1], level[y, x + 1]
            n20, n21, n22 = level[y + 1, x - 1], level[y + 1, x], level[y + 1, x + 1]
            i = own - 1
            if n12:
                glcm[0, i, n12 - 1] += 1
            if n21:
                glcm[1, i, n21 - 1] += 1
            if n22:
                glcm[2, i, n22 - 1] += 1
            if n20:
                glcm[3, i, n20 - 1] += 1
            length_right = length_right + 1 if n10 == own else 1
            length_here[0, x] = length_above[0, x] + 1 if n01 == own else 1
            length_here[1, x] = length_above[1, x - 1] + 1 if n00 == own else 1
            length_here[2, x] = length_above[2, x + 1] + 1 if n02 == own else 1
            if n12 != own:
                glrlm[0, i, length_right - 1] += 1
            if n21 != own:
                glrlm[1, i, length_here[0, x] - 1] += 1
            if n22 != own:
                glrlm[2, i, length_here[1, x] - 1] += 1
            if n20 != own:
                glrlm[3, i, length_here[2, x] - 1] += 1
            n_alike = n_inside = level_sum = 0
            for near_level in (n00, n01, n02, n10, n12, n20, n21, n22):
                n_alike += near_level == own
                n_inside += near_level > 0
                level_sum += near_level
            gldm[i, n_alike] += 1
            difference[i, n_inside] += abs(own * n_inside - level_sum)


@numba.njit(cache=True, nogil=True)
def _count_zones(level, small, large_level, large_size):  # type: ignore[no-untyped-def]
    """Union-find over the pixels: labels of touching pixels of one level are joined, and the smaller one remains."""
    side = len(level)
    label = np.empty((side, side), np.int32)
    parent = np.empty(side * side, np.int32)
    size = np.empty(side * side, np.int32)
    label_level = np.empty(side * side, np.int32)
    n_labels = 0
    for y in range(1, side - 1):
        for x in range(1, side - 1):
            own = level[y, x]
            if own == 0:
                continue
            root = -1
            if level[y, x - 1] == own:
                root = _find_root(parent, label[y, x - 1])
            # The pixel above also touches its left and right neighbours: those matter only if its level differs.
            if level[y - 1, x] == own:
                root = _join(parent, root, label[y - 1, x])
            else:
                if level[y - 1, x - 1] == own:
                    root = _join(parent, root, label[y - 1, x - 1])
                if level[y - 1, x + 1] == own:
                    root = _join(parent, root, label[y - 1, x + 1])
            if root < 0:
                root = n_labels
                parent[n_labels] = n_labels
                size[n_labels] = 0
                label_level[n_labels] = own
                n_labels += 1
            label[y, x] = root
            size[root] += 1
    for k in range(n_labels):
        root = _find_root(parent, k)
        if root != k:
            size[root] += size[k]
            size[k] = 0
    n_large = 0
    for k in range(n_labels):
        if size[k] > small.shape[1]:
            large_level[n_large], large_size[n_large] = label_level[k], size[k]
            n_large += 1
        elif size[k] > 0:
            small[label_level[k] - 1, size[k] - 1] += 1


@numba.njit(cache=True, nogil=True)
def _find_root(parent, node):  # type: ignore[no-untyped-def]
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@numba.njit(cache=True, nogil=True)
def _join(parent, root, node):  # type: ignore[no-untyped-def]
    """Join two components and return their common root. root: −1 if the pixel has none yet."""
    node_root = _find_root(parent, node)
    if root < 0 or root == node_root:
        return node_root
    low, high = min(root, node_root), max(root, node_root)
    parent[high] = low
    return low


@numba.njit(cache=True, nogil=True)
def _count_outline(  # type: ignore[no-untyped-def]
    level,
    valid_directions,
    window_counts,
    row_counts,
    column_counts,
    row_start,
    offset_sum,
    offset_square_sum,
    low,
    high,
):
    side = len(level)
    low[0::2], low[1::2] = 2 * side + 1, 2 * side + 2
    high[0::2], high[1::2] = -3, -4
    diagonal_counts = np.zeros((2, 2 * side), np.int32)
    for y in range(side - 1):
        for x in range(side - 1):
            here, below = level[y, x] > 0, level[y + 1, x] > 0
            right, diagonal = level[y, x + 1] > 0, level[y + 1, x + 1] > 0
            n_inside = int(here) + int(below) + int(right) + int(diagonal)
            if n_inside == 0:
                continue
            if n_inside == 1:
                window_counts[0] += 1
            elif n_inside == 3:
                window_counts[1] += 1
            elif n_inside == 2:
                window_counts[3 if here == diagonal else 2] += 1
            else:
                window_counts[4] += 1
            if here:
                if row_counts[y] == 0:
                    row_start[y] = x
                row_counts[y] += 1
                column_counts[x] += 1
                offset_sum[y] += x - row_start[y]
                offset_square_sum[y] += (x - row_start[y]) ** 2
                diagonal_counts[0, y - x + side] += 1
                diagonal_counts[1, y + x] += 1
                low[2 * y] = min(low[2 * y], 2 * x - 1)
                high[2 * y] = max(high[2 * y], 2 * x + 1)
            if here != below:
                low[2 * y + 1] = min(low[2 * y + 1], 2 * x)
                high[2 * y + 1] = max(high[2 * y + 1], 2 * x)
    valid_directions[0], valid_directions[1] = row_counts.max() > 1, column_counts.max() > 1
    valid_directions[2], valid_directions[3] = (
        diagonal_counts[0].max() > 1,
        diagonal_counts[1].max() > 1,
    )
