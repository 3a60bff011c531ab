"""Result: what the measurement of one region ends in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kacl_jax.radiomics import FEATURE_NAMES


@dataclass(frozen=True, eq=False)
class Result:
    """features float32 [102], all finite, or None and the reason.

    deterministic: the same region will always end like this. False when a task was given up
    because its workers died, hung or broke; such a result belongs to no reproducible run.
    """

    features: np.ndarray | None
    reason: str | None
    deterministic: bool = True


def result_from_features(features: np.ndarray) -> Result:
    """features float32 [102]; one that is not finite makes the result a failure that names it."""
    bad = np.flatnonzero(~np.isfinite(features))
    if len(bad):
        return Result(None, f"non-finite: {FEATURE_NAMES[bad[0]]}")
    return Result(features, None)
