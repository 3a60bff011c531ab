"""Radiomics inside the train step: from this step's maps to this step's features, without the host.

The counterpart of `roi` and `feedback` for radiomics.backend = 'jax'. Axes: b batch · h w pixels · u v map cells ·
c findings · f radiomic features.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from kacl_jax import gradcam
from kacl_jax.radiomics import bins, tiles

_MOST_LEVELS = 64


@dataclasses.dataclass(frozen=True)
class FreshRadiomics:
    """How the step marks and measures a region.

    source, truth_boxes, relu, threshold, size, shape: as in `roi.RegionRule` ('random' needs the host).
    bin_width: of the grey level bins.
    """

    source: Literal["cam", "whole"]
    truth_boxes: bool
    relu: bool
    threshold: float
    size: int
    bin_width: float
    shape: Literal["mask", "box"] = "mask"

    def measure(
        self, images: jax.Array, cam: jax.Array, box_finding: jax.Array, boxes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The regions' features.

        Args:
          images: uint8 [b h w], not augmented. cam: float32 [b u v] in the original frame.
          box_finding: int32 [b], −1 without a truth box. boxes: float32 [b c 4].

        Returns:
          (float32 [b f], bool [b]): not ready are regions with more than 64 grey levels, and those with a feature
          that is NaN, as on the host path.
        """
        table = bins.table(self.bin_width)
        levels = min(int(table.max()), _MOST_LEVELS)
        features, ready = tiles.of_regions(
            images,
            self.mark(cam, box_finding, boxes),
            jnp.asarray(table),
            side=self.size + 2,
            levels=levels,
            formulation="scatter" if jax.default_backend() == "cpu" else "matmul",
        )
        ready &= jnp.isfinite(features).all(1)
        return jax.lax.stop_gradient(jnp.where(ready[:, None], features, 0)), ready

    def mark(self, cam: jax.Array, box_finding: jax.Array, boxes: jax.Array) -> jax.Array:
        """The regions, bool [b h w]: those of `roi.RegionRule.mark`."""
        if self.source == "cam":
            masks, _ = gradcam.peak_masks(
                cam, size=self.size, relu=self.relu, threshold=self.threshold
            )
            if self.shape == "box":
                masks = gradcam.around(masks)
        else:
            whole = jnp.pad(jnp.ones((self.size - 2, self.size - 2), bool), 1)
            masks = jnp.broadcast_to(whole, (len(cam), *whole.shape))
        if not self.truth_boxes:
            return masks
        box = jnp.take_along_axis(boxes, jnp.maximum(box_finding, 0)[:, None, None], axis=1)[:, 0]
        truth = gradcam.box_masks(box, self.size)
        return jnp.where((box_finding >= 0)[:, None, None], truth, masks)
