"""CamRule: the Grad-CAM that marks each image's region in training, and the running mean map subtracted from it.

Axes: b batch on this device · u v map cells · c findings.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from kacl_jax.models.kacl import KACL
from kacl_jax.runtime.devices import AXIS
from kacl_jax.step import augment, gradcam
from kacl_jax.step.forward import Forward
from kacl_jax.step.scaling import weight_of_newest
from kacl_jax.step.state import TrainState


@dataclasses.dataclass(frozen=True)
class CamRule:
    """How the maps follow from a forward pass.

    center: subtract the finding's running mean map. A forward pass that has an `early_map` gives Grad-CAM there, before
    the last stage.
    """

    model: KACL
    center: bool

    def classify_early(
        self, state: TrainState, early_map: Float32[Array, "b u v k"]
    ) -> Float32[Array, "b c"]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits: Any = self.model.apply(variables, early_map, method="classify_early")
        return logits

    def batch_mean_maps(
        self, state: TrainState, forward: Forward, maps: Float32[Array, "b c _u _v"]
    ) -> Float32[Array, "c u v"]:
        """The mean raw map of each finding over the global batch, on the grid that marks regions.

        Before the last stage, a map for every finding of every image would cost c backward passes. There each image
        gives a map of one finding, and the findings alternate over rows and steps.
        """
        if forward.early_map is None:
            return jax.lax.pmean(maps.mean(0), AXIS)
        b, c = maps.shape[:2]
        row = jnp.arange(b) + jax.lax.axis_index(AXIS) * b
        finding = (row + state.step) % c
        classify = functools.partial(self.classify_early, state)
        early_maps = gradcam.finding_map(classify, forward.early_map, finding)
        one_hot = jax.nn.one_hot(finding, c)
        sums = jax.lax.psum(jnp.einsum("bc,buv->cuv", one_hot, early_maps), AXIS)
        return sums / jax.lax.psum(one_hot.sum(0), AXIS)[:, None, None]

    def updated_mean_map(
        self, state: TrainState, forward: Forward, maps: Float32[Array, "b c u v"]
    ) -> dict[str, Array]:
        """The running mean map after this step, and its count: fields of the new state."""
        rate = weight_of_newest(state.cam_count + 1)
        batch_mean = self.batch_mean_maps(state, forward, maps)
        return {
            "cam_mean": state.cam_mean + rate * (batch_mean - state.cam_mean),
            "cam_count": state.cam_count + 1,
        }

    def region_inputs(
        self,
        state: TrainState,
        forward: Forward,
        logits: Float32[Array, "b c"],
        maps: Float32[Array, "b c u v"],
    ) -> dict[str, Array]:
        """Per row, what marking its region needs: `cam` float32 [b u v] and `box_finding` int32 [b].

        logits, maps: raw, of the forward pass. See `Programs.train_step`.
        """
        finding = gradcam.region_finding(logits, forward.batch["labels"])
        if forward.early_map is not None:
            classify = functools.partial(self.classify_early, state)
            cam = gradcam.finding_map(classify, forward.early_map, finding)
        else:
            cam = jnp.take_along_axis(maps, finding[:, None, None, None], axis=1)[:, 0]
        if self.center:
            cam = cam - state.cam_mean[finding]
        if forward.affine is not None:
            cam = augment.warp(cam, augment.invert(forward.affine))
        annotated = forward.batch["has_box"]
        box_finding = jnp.argmax(jnp.where(annotated, logits, -jnp.inf), axis=1)
        return {
            "cam": cam,
            "box_finding": jnp.where(annotated.any(1), box_finding, -1).astype(jnp.int32),
        }
