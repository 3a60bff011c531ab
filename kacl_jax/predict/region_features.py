"""Radiomic features of marked regions, measured as the run measures them: by pyradiomics, on the network's image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.radiomics.extractor_pool import shared_pool
from kacl_jax.radiomics.host import Extractor


class MarkedRegion(NamedTuple):
    """pixels: uint8 [s s]. mask: bool [s s], not empty."""

    pixels: np.ndarray
    mask: np.ndarray


class RegionFeatures(NamedTuple):
    """features: float64 [102] in the order of FEATURE_NAMES, NaN where one is not defined.

    reason: why there are none, or ''.
    """

    features: np.ndarray
    reason: str


def measure(
    regions: Sequence[MarkedRegion], bin_width: float, workers: int = 1
) -> list[RegionFeatures]:
    """The features of each region, measured by `workers` processes if there are several."""
    if workers > 1 and len(regions) > 1:
        results = shared_pool(workers, bin_width, None).measure(regions)
    else:
        results = [_extractor(bin_width).features_or_reason(*region) for region in regions]
    none = np.full(len(FEATURE_NAMES), np.nan)
    return [
        RegionFeatures(none, found) if isinstance(found, str) else RegionFeatures(found, "")
        for found in results
    ]


@functools.lru_cache(maxsize=1)
def _extractor(bin_width: float) -> Extractor:
    return Extractor(bin_width)
