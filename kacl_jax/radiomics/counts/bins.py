"""Binning of grey values to grey levels 1, 2, …, as in pyradiomics.

Computed on the host with numpy's arithmetic, so that a value on the edge of a bin gets the same level as in
pyradiomics. For 8-bit grey values a table is enough. Imports no jax.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8


def bin_edges(
    low: float, high: float, *, bin_width: float, bin_count: int | None
) -> Float[np.ndarray, "edges"]:
    """Lower edges of the bins of a region whose grey values are `low` … `high`.

    By width: multiples of `bin_width`, from the largest one that is not above `low`. By count: `bin_count` equal bins,
    of which the last one contains `high`.
    """
    extremes = np.array([low, high], np.float32)
    if bin_count is not None:
        lower_edges = np.histogram(extremes, bin_count)[1]
        lower_edges[-1] += 1
        return lower_edges
    start = extremes[0] - extremes[0] % bin_width
    lower_edges = np.arange(start, extremes[1] + 2 * bin_width, bin_width)
    # A single grey value that is an edge itself gets one bin around it.
    return lower_edges if len(lower_edges) != 1 else lower_edges[0] + np.array([-0.5, 0.5])


def grey_levels(
    pixels: UInt8[np.ndarray, "h w"] | Float32[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
    *,
    bin_width: float,
    bin_count: int | None,
) -> Int64[np.ndarray, "h w"]:
    """Grey levels from 1 on, 0 outside the mask.

    The mask is not empty, the pixels are finite, and they need few enough bins (`host.check_region`).

    Raises:
      ValueError: float32 cannot tell the edges of the bins apart.
    """
    values = pixels[mask]
    levels = np.zeros(pixels.shape, np.int64)
    with np.errstate(all="ignore"):
        lower_edges = bin_edges(
            float(values.min()), float(values.max()), bin_width=bin_width, bin_count=bin_count
        )
        if pixels.dtype == np.uint8:
            levels[mask] = np.digitize(np.arange(256, dtype=np.float32), lower_edges)[values]
        else:
            levels[mask] = np.digitize(values, lower_edges)
    if levels[mask].min() < 1:
        raise ValueError("a grey value lies below all bins")
    return levels


def level_table(bin_width: float) -> UInt8[np.ndarray, "256 256"]:
    """The level of each 8-bit grey value (column) in a region whose minimum is the row's number.

    Levels above 255 become 255; grey values below the minimum have level 0.
    """
    if bin_width <= 1 / 256:  # every higher grey value is more than 255 levels away
        return (255 * np.triu(np.ones((256, 256)), 1) + np.eye(256)).astype(np.uint8)
    grey = np.arange(256, dtype=np.float32)
    rows = [
        np.digitize(grey, bin_edges(float(low), 255, bin_width=bin_width, bin_count=None))
        for low in grey
    ]
    return np.minimum(np.stack(rows), 255).astype(np.uint8)
