"""From grey values to grey levels 1, 2, … as pyradiomics bins them: which grey value lies in which bin.

On the host and in numpy's own arithmetic, so that a value on the edge of a bin falls on pyradiomics' side. 8-bit grey
values need only a table. Imports no jax.
"""

from __future__ import annotations

import numpy as np


def edges(low: float, high: float, *, bin_width: float, bin_count: int | None) -> np.ndarray:
    """Lower edges of the bins of a region whose grey values are `low` … `high`.

    By width: multiples of `bin_width` from the one at or below `low` on. By count: that many equal bins, of which the
    last holds `high`.
    """
    extremes = np.array([low, high], np.float32)
    if bin_count is not None:
        lower = np.histogram(extremes, bin_count)[1]
        lower[-1] += 1
        return lower
    start = extremes[0] - extremes[0] % bin_width
    lower = np.arange(start, extremes[1] + 2 * bin_width, bin_width)
    # One grey value, on an edge: one bin around it.
    return lower if len(lower) > 1 else lower[0] + np.array([-0.5, 0.5])


def levels(
    pixels: np.ndarray, mask: np.ndarray, *, bin_width: float, bin_count: int | None
) -> np.ndarray:
    """Grey levels int16 [h w], 0 outside the mask. pixels: uint8 or float32 [h w]; mask: bool [h w], not empty."""
    values = pixels[mask]
    found = np.zeros(pixels.shape, np.int16)
    lower = edges(
        float(values.min()), float(values.max()), bin_width=bin_width, bin_count=bin_count
    )
    if pixels.dtype == np.uint8:
        found[mask] = np.digitize(np.arange(256, dtype=np.float32), lower)[values]
    else:
        found[mask] = np.digitize(values, lower)
    return found


def table(bin_width: float) -> np.ndarray:
    """uint8 [256 256]: the level of each 8-bit grey value (column) in a region with that minimum (row).

    Levels over 255 are 255; values below the minimum are 0.
    """
    grey = np.arange(256, dtype=np.float32)
    rows = [
        np.digitize(grey, edges(float(low), 255, bin_width=bin_width, bin_count=None))
        for low in grey
    ]
    return np.minimum(np.stack(rows), 255).astype(np.uint8)
