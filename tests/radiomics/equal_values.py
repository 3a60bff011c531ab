"""When the values of the JAX extractor count as pyradiomics' own."""

from __future__ import annotations

import numpy as np

from kacl_jax.radiomics import FEATURE_NAMES, Extraction, extract

Regions = list[tuple[np.ndarray, np.ndarray]]

# Relative tolerance, and an absolute floor for what cancels to zero: entropies of one level, central moments of a
# constant, and square roots of what is exactly 0 (Imc2, MinorAxisLength, Elongation). The floor of ClusterShade, an
# odd moment, is a share of ClusterTendency^{3/2}.
RELATIVE = {"float64": 1e-8, "float32": 1e-5}
FLOOR = {"float64": 1e-12, "float32": 1e-6}
FLOORS = {
    "float64": {"Imc2": 1e-7, "MinorAxisLength": 1e-6, "Elongation": 1e-7, "MCC": 1e-6},
    "float32": {"Imc2": 1e-5, "MinorAxisLength": 2e-5, "MCC": 1e-5},
}
# Where the exact second eigenvalue (MCC) or mutual information (Imc2) of a direction is 0, the sign of pyradiomics'
# rounding error decides between 0 and NaN, and with it whether that direction counts.
SIGN_OF_ROUNDING_DECIDES = ("MCC", "Imc2")


def assert_equal(actual: Extraction, expected: Extraction, dtype: str) -> None:
    np.testing.assert_array_equal(actual.ready, expected.ready)
    for column, name in enumerate(FEATURE_NAMES):
        short = name.split("_")[-1]
        a, b = actual.features[:, column].astype(float), expected.features[:, column]
        if short in SIGN_OF_ROUNDING_DECIDES:
            decided = ~np.isnan(b) | np.isnan(a)
            a, b = np.where(decided, a, 0), np.where(decided, b, 0)
        floor = np.full(len(b), FLOORS[dtype].get(short, FLOOR[dtype]))
        if short == "ClusterShade":
            scale = expected.features[:, FEATURE_NAMES.index("original_glcm_ClusterTendency")]
            floor = floor * np.maximum(scale, 1) ** 1.5
        relative = 1e-6 if (short, dtype) == ("MCC", "float64") else RELATIVE[dtype]
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
        wrong = np.abs(a - b) > relative * np.abs(b) + floor
        assert not wrong.any(), (name, a[wrong], b[wrong])


def both(
    regions: Regions, dtype: str = "float64", **options: float
) -> tuple[Extraction, Extraction]:
    images, masks = [r[0] for r in regions], [r[1] for r in regions]
    actual = extract(images, masks, backend="jax", dtype=dtype, **options)
    return actual, extract(images, masks, dtype="float64", **options)
