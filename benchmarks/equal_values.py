"""When the values of the JAX extractor count as pyradiomics' own."""

from __future__ import annotations

import numpy as np

from kacl_jax.radiomics import FEATURE_NAMES

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


def share_of_tolerance(actual: np.ndarray, expected: np.ndarray, dtype: str) -> np.ndarray:
    """How much of the tolerance each difference takes, [n f]: over 1 is too much, and infinite where one alone is NaN.

    actual, expected: features [n f] in the order of FEATURE_NAMES; `actual` was computed in `dtype`.
    """
    shares = np.empty(expected.shape)
    tendency = expected[:, FEATURE_NAMES.index("original_glcm_ClusterTendency")]
    for column, name in enumerate(FEATURE_NAMES):
        short = name.split("_")[-1]
        a, b = actual[:, column].astype(float), expected[:, column]
        if short in SIGN_OF_ROUNDING_DECIDES:
            decided = ~np.isnan(b) | np.isnan(a)
            a, b = np.where(decided, a, 0), np.where(decided, b, 0)
        floor = np.full(len(b), FLOORS[dtype].get(short, FLOOR[dtype]))
        if short == "ClusterShade":
            floor = floor * np.maximum(tendency, 1) ** 1.5
        relative = 1e-6 if (short, dtype) == ("MCC", "float64") else RELATIVE[dtype]
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            share = np.abs(a - b) / (relative * np.abs(b) + floor)
        shares[:, column] = np.where(equal, 0, np.where(np.isnan(share), np.inf, share))
    return shares
