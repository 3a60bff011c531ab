"""The JAX extractor beside pyradiomics, on the same regions."""

from __future__ import annotations

import numpy as np

from benchmarks.equal_values import share_of_tolerance
from kacl_jax.radiomics import FEATURE_NAMES, Extraction, extract

Regions = list[tuple[np.ndarray, np.ndarray]]


def assert_equal(actual: Extraction, expected: Extraction, dtype: str) -> None:
    np.testing.assert_array_equal(actual.ready, expected.ready)
    wrong = ~(share_of_tolerance(actual.features, expected.features, dtype) <= 1)
    assert not wrong.any(), [
        (FEATURE_NAMES[column], actual.features[row, column], expected.features[row, column])
        for row, column in np.argwhere(wrong)
    ]


def both(
    regions: Regions, dtype: str = "float64", **options: float
) -> tuple[Extraction, Extraction]:
    images, masks = [r[0] for r in regions], [r[1] for r in regions]
    actual = extract(images, masks, backend="jax", dtype=dtype, **options)
    return actual, extract(images, masks, dtype="float64", **options)
