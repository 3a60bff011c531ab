"""Radiomics inside the train step: from this step's maps to this step's features, without the host.

The counterpart of `feedback/` for radiomics.backend = 'jax'. Axes: b batch · h w pixels · u v map cells ·
c findings · k boxes of a finding · f radiomic features.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8

from kacl_jax.radiomics import FEATURE_NAMES, tiles
from kacl_jax.radiomics.counts import bins
from kacl_jax.radiomics.counts.bincount import Formulation
from kacl_jax.step.regions import RegionRule

_MAX_LEVELS = 64
# No GPU has decided yet: benchmarks/regions.py times this form, and "matmul" and "scatter" in its place.
_ON_A_GPU: Formulation = "compare"
# The reasons in the words of the host path.
FAILURES = (*tiles.PROBLEMS, *(f"non-finite: {name}" for name in FEATURE_NAMES))


class InStepFeatures(NamedTuple):
    """radiomics: zeros where a region has none.

    origin, failure: where a region came from and why it has no features: places in `regions.ORIGINS` and FAILURES.
    """

    radiomics: Float32[Array, "b f"]
    ready: Bool[Array, "b"]
    origin: Int32[Array, "b"]
    failure: Int32[Array, "b"]


@dataclasses.dataclass(frozen=True)
class InStepRadiomics:
    """How the step marks and measures a region.

    rule: as on the host, except for the source 'random', which only the host can draw.
    bin_width: of the grey level bins.
    """

    rule: RegionRule
    bin_width: float

    @property
    def level_table(self) -> UInt8[np.ndarray, "256 256"]:
        """See `bins.level_table`."""
        return bins.level_table(self.bin_width)

    @property
    def n_levels(self) -> int:
        """The highest grey level that is counted."""
        return min(int(self.level_table.max()), _MAX_LEVELS)

    @property
    def side(self) -> int:
        """Of the tile that holds any region, in px."""
        return self.rule.size + 2

    def measure(
        self,
        images: UInt8[Array, "b h w"],
        cam: Float32[Array, "b u v"],
        box_finding: Int32[Array, "b"],
        boxes: Float32[Array, "b c k 4"],
    ) -> InStepFeatures:
        """Mark each image's region and measure it.

        images: not augmented. cam: in the original frame. box_finding, boxes: as in `RegionRule.mark`. As on the host
        path, a region has no features if one of them is not finite. A region with more than 64 grey levels has none
        either.
        """
        masks, origin = self.rule.mark_on_device(cam, box_finding, boxes)
        measure = functools.partial(tiles.region_features, side=self.side, n_levels=self.n_levels)
        # The device that the program is compiled for decides, which need not be one of this machine.
        features, problem = jax.lax.platform_dependent(
            images,
            masks,
            jnp.asarray(self.level_table),
            cpu=functools.partial(measure, formulation="scatter", one_by_one=True),
            tpu=functools.partial(measure, formulation="matmul"),
            default=functools.partial(measure, formulation=_ON_A_GPU),
        )
        non_finite = ~jnp.isfinite(features)
        non_finite_failure = jnp.where(
            non_finite.any(1), len(tiles.PROBLEMS) + jnp.argmax(non_finite, axis=1), 0
        )
        failure = jnp.where(problem > 0, problem, non_finite_failure)
        ready = failure == 0
        radiomics = jax.lax.stop_gradient(jnp.where(ready[:, None], features, 0))
        return InStepFeatures(radiomics, ready, origin, failure)
