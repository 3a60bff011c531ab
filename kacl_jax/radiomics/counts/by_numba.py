"""The counts of `matrices`, on the CPU, by numba: one pass over each region's pixels instead of one per matrix.

The same integers, hence the same features, several times faster and without XLA's compile time for each tile side.
numba is optional (`pip install numba`); `extract` uses this file where it is installed and the device is a CPU.

Axes: n regions · s side of the tile · g grey levels.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from kacl_jax.radiomics.counts.matrices import Matrices, Outline
from kacl_jax.radiomics.counts.zones import SMALL, Zones, most_large


def count(pixels: np.ndarray, level: np.ndarray, *, levels: int) -> Matrices:
    """The matrices of n regions as numpy arrays, each with a leading axis n.

    pixels: uint8 [n s s] (another dtype: the histogram stays empty). level: uint8 [n s s], 1 … `levels` inside the
    region, 0 outside and on the rim.
    """
    n, side, _ = level.shape

    def zeros(*shape: int) -> Any:
        return np.zeros((n, *shape), np.int32)

    large = most_large(side * side)
    found = Matrices(
        histogram=zeros(256),
        levels=zeros(levels),
        glcm=zeros(4, levels, levels),
        glrlm=zeros(4, levels, side),
        lines=zeros(4),
        zones=Zones(small=zeros(levels, SMALL), level=zeros(large), size=zeros(large)),
        gldm=zeros(levels, 9),
        difference=zeros(levels, 9),
        outline=Outline(
            windows=zeros(5),
            rows=zeros(side),
            columns=zeros(side),
            start=zeros(side),
            along=zeros(side),
            along_squared=zeros(side),
            low=zeros(2 * side),
            high=zeros(2 * side),
        ),
    )
    for row in range(n):
        _textures(
            level[row],
            found.glcm[row],
            found.glrlm[row],
            found.gldm[row],
            found.difference[row],
        )
        _zones(level[row], *(x[row] for x in found.zones))
        _outline(level[row], found.lines[row], *(x[row] for x in found.outline))
        if pixels.dtype == np.uint8:
            _histogram(pixels[row], level[row], found.histogram[row])
    symmetric = found.glcm + found.glcm.transpose(0, 1, 3, 2)
    of_level: Any = found.gldm.sum(2)
    return found._replace(
        levels=of_level.astype(np.int32), glcm=symmetric, lines=found.lines.astype(bool)
    )


@numba.njit(cache=True, nogil=True)
def _histogram(pixels, level, histogram):  # type: ignore[no-untyped-def]
    side = len(level)
    for y in range(1, side - 1):
        for x in range(1, side - 1):
            if level[y, x]:
                histogram[pixels[y, x]] += 1


@numba.njit(cache=True, nogil=True)
def _textures(level, glcm, glrlm, gldm, difference):  # type: ignore[no-untyped-def]
    """Pairs, runs and neighbourhoods. Directions as in matrices.DIRECTIONS: right, down, down right, down left."""
    side = len(level)
    # Length of the run that ends here, of this row and of the row above.
    ends = np.zeros((2, 3, side), np.int32)
    for y in range(1, side - 1):
        above, here = ends[(y - 1) % 2], ends[y % 2]
        along = 0
        for x in range(1, side - 1):
            own = level[y, x]
            if own == 0:
                here[:, x] = 0
                along = 0
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
            along = along + 1 if n10 == own else 1
            here[0, x] = above[0, x] + 1 if n01 == own else 1
            here[1, x] = above[1, x - 1] + 1 if n00 == own else 1
            here[2, x] = above[2, x + 1] + 1 if n02 == own else 1
            if n12 != own:
                glrlm[0, i, along - 1] += 1
            if n21 != own:
                glrlm[1, i, here[0, x] - 1] += 1
            if n22 != own:
                glrlm[2, i, here[1, x] - 1] += 1
            if n20 != own:
                glrlm[3, i, here[2, x] - 1] += 1
            like = inside = total = 0
            for near in (n00, n01, n02, n10, n12, n20, n21, n22):
                like += near == own
                inside += near > 0
                total += near
            gldm[i, like] += 1
            difference[i, inside] += abs(own * inside - total)


@numba.njit(cache=True, nogil=True)
def _zones(level, small, large_level, large_size):  # type: ignore[no-untyped-def]
    """Union-find over the pixels: the first labels of two rows that touch are joined, the smaller one stays."""
    side = len(level)
    label = np.empty((side, side), np.int32)
    parent = np.empty(side * side, np.int32)
    size = np.empty(side * side, np.int32)
    of_level = np.empty(side * side, np.int32)
    number = 0
    for y in range(1, side - 1):
        for x in range(1, side - 1):
            own = level[y, x]
            if own == 0:
                continue
            found = -1
            if level[y, x - 1] == own:
                found = _root(parent, label[y, x - 1])
            # The pixel above touches those left and right of it: the others need a look only without it.
            if level[y - 1, x] == own:
                found = _joined(parent, found, label[y - 1, x])
            else:
                if level[y - 1, x - 1] == own:
                    found = _joined(parent, found, label[y - 1, x - 1])
                if level[y - 1, x + 1] == own:
                    found = _joined(parent, found, label[y - 1, x + 1])
            if found < 0:
                found = number
                parent[number] = number
                size[number] = 0
                of_level[number] = own
                number += 1
            label[y, x] = found
            size[found] += 1
    for k in range(number):
        root = _root(parent, k)
        if root != k:
            size[root] += size[k]
            size[k] = 0
    large = 0
    for k in range(number):
        if size[k] > small.shape[1]:
            large_level[large], large_size[large] = of_level[k], size[k]
            large += 1
        elif size[k] > 0:
            small[of_level[k] - 1, size[k] - 1] += 1


@numba.njit(cache=True, nogil=True)
def _root(parent, node):  # type: ignore[no-untyped-def]
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@numba.njit(cache=True, nogil=True)
def _joined(parent, root, node):  # type: ignore[no-untyped-def]
    """The root of both. root: −1 where there is none yet."""
    other = _root(parent, node)
    if root < 0 or root == other:
        return other
    low, high = min(root, other), max(root, other)
    parent[high] = low
    return low


@numba.njit(cache=True, nogil=True)
def _outline(level, lines, windows, rows, columns, start, along, along_squared, low, high):  # type: ignore[no-untyped-def]
    side = len(level)
    low[0::2], low[1::2] = 2 * side + 1, 2 * side + 2
    high[0::2], high[1::2] = -3, -4
    diagonals = np.zeros((2, 2 * side), np.int32)
    for y in range(side - 1):
        for x in range(side - 1):
            inside, under = level[y, x] > 0, level[y + 1, x] > 0
            beside, across = level[y, x + 1] > 0, level[y + 1, x + 1] > 0
            number = int(inside) + int(under) + int(beside) + int(across)
            if number == 0:
                continue
            if number == 1:
                windows[0] += 1
            elif number == 3:
                windows[1] += 1
            elif number == 2:
                windows[3 if inside == across else 2] += 1
            else:
                windows[4] += 1
            if inside:
                if rows[y] == 0:
                    start[y] = x
                rows[y] += 1
                columns[x] += 1
                along[y] += x - start[y]
                along_squared[y] += (x - start[y]) ** 2
                diagonals[0, y - x + side] += 1
                diagonals[1, y + x] += 1
                low[2 * y] = min(low[2 * y], 2 * x - 1)
                high[2 * y] = max(high[2 * y], 2 * x + 1)
            if inside != under:
                low[2 * y + 1] = min(low[2 * y + 1], 2 * x)
                high[2 * y + 1] = max(high[2 * y + 1], 2 * x)
    lines[0], lines[1] = rows.max() > 1, columns.max() > 1
    lines[2], lines[3] = diagonals[0].max() > 1, diagonals[1].max() > 1
