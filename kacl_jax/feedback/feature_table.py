"""FeatureTable: the radiomic features that training reads, one row per image of the data root."""

from __future__ import annotations

import numpy as np

from kacl_jax.feedback.result import Result
from kacl_jax.radiomics import FEATURE_NAMES

_NEVER = -1


class FeatureTable:
    """A dense table in memory; all of ChestX-ray14 is 46 MB.

    features: float32 [n f], zeros where not ready. ready: bool [n]. step: int32 [n], the step whose region the row
    describes, −1 if none.
    """

    def __init__(self, images: int) -> None:
        self.features = np.zeros((images, len(FEATURE_NAMES)), np.float32)
        self.ready = np.zeros(images, bool)
        self.step = np.full(images, _NEVER, np.int32)

    def set(self, image: int, result: Result, step: int) -> None:
        """Write one row; a failed result makes it not ready."""
        self.features[image] = 0.0 if result.features is None else result.features
        self.ready[image] = result.features is not None
        self.step[image] = step
