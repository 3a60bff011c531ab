"""What the train step minimises: the terms of the loss, their weights and the sizes of their gradients.

Axes: b batch on this device · h w pixels · u v map cells · k channels · c findings · p projection · f radiomic
features.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kacl_jax.models.kacl import KACL, MIN_READY_ROWS
from kacl_jax.runtime.devices import AXIS
from kacl_jax.step import augment, gradcam, losses
from kacl_jax.step.state import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """total = λ · focal + (1 − λ) · NT-Xent + box_weight · guidance, λ = focal_weight.

    positive: what NT-Xent pairs an image with: the radiomics of its region, or a second augmented view of itself.
    """

    focal_weight: float
    focal_alpha: float
    focal_gamma: float
    temperature: float
    mask_same_patient: bool
    box_weight: float
    positive: Literal["radiomics", "augmented"] = "radiomics"

    @property
    def uses_radiomics(self) -> bool:
        return self.focal_weight < 1 and self.positive == "radiomics"

    @property
    def uses_second_view(self) -> bool:
        return self.focal_weight < 1 and self.positive == "augmented"


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of one run as functions of the parameters and one forward pass.

    feature_columns: the radiomic features that the radiomics encoder sees. warmup_steps: steps without NT-Xent.
    """

    model: KACL
    loss: LossSettings
    feature_columns: tuple[bool, ...]
    warmup_steps: int

    def total(
        self,
        step: jax.Array,
        params: Any,
        batch_stats: Any,
        feature_map: jax.Array,
        batch: Batch,
        affine: jax.Array | None,
        radiomics: jax.Array,
    ) -> tuple[jax.Array, Metrics, dict[str, Any]]:
        """(the loss over the global batch, its unweighted terms, aux); arguments and aux as in `terms`.

        If no row of the batch has a term, the term is reported as NaN and adds 0 to the loss. Pass the gradients of the
        loss through `global_gradients`: they are then right under shard_map and under pmap.
        """
        sums, counts, aux = self.terms(params, batch_stats, feature_map, batch, affine, radiomics)
        counts = jax.lax.psum(counts, AXIS)
        terms = {k: jax.lax.psum(sums[k], AXIS) / jnp.maximum(counts[k], 1) for k in sums}
        weights = self.weights(step, counts)
        loss = sum((weights[k] * terms[k] for k in terms), jnp.zeros(()))
        return loss, {k: jnp.where(counts[k] > 0, terms[k], jnp.nan) for k in terms}, aux

    def terms(
        self,
        params: Any,
        batch_stats: Any,
        feature_map: jax.Array,
        batch: Batch,
        affine: jax.Array | None,
        radiomics: jax.Array,
    ) -> tuple[Metrics, Metrics, dict[str, Any]]:
        """Each loss term's sum and count on this device, and what came by on the way.

        Args:
          feature_map: float32 [b u v k], followed by that of the second views, [2b u v k], if there are some.
          batch: as in `programs.Programs.train_step`. affine: float32 [b 2 3], how the (first) views were changed.
          radiomics: float32 [b f], z-scored.

        Returns:
          (sums, counts, aux): aux holds logits [b c], raw class maps [b c u v] without gradient, both of the first
          views, and the moved batch statistics.
        """
        logits, maps = self.logits_and_maps(params, feature_map[: len(batch["labels"])])
        focal = losses.focal_loss(
            logits, batch["labels"], alpha=self.loss.focal_alpha, gamma=self.loss.focal_gamma
        ).sum(1)
        sums = {"focal": focal.sum()}
        counts = {"focal": jnp.ones_like(focal).sum()}
        if self.loss.focal_weight < 1:
            z_image, z_positive, ready, batch_stats = self._pairs(
                params, batch_stats, feature_map, batch, radiomics
            )
            loss, weight = losses.nt_xent(
                z_image,
                z_positive,
                ready=ready,
                patient_id=batch["patient_id"],
                temperature=self.loss.temperature,
                mask_same_patient=self.loss.mask_same_patient,
                axis_name=AXIS,
            )
            sums["nt_xent"], counts["nt_xent"] = loss.sum(), weight.sum()
        if self.loss.box_weight:
            boxes = batch["boxes"] if affine is None else augment.warp_boxes(batch["boxes"], affine)
            loss, weight = losses.box_guidance(maps, boxes, batch["has_box"])
            sums["box"], counts["box"] = loss.sum(), weight.sum()
        aux = {"logits": logits, "maps": jax.lax.stop_gradient(maps), "batch_stats": batch_stats}
        return sums, counts, aux

    def weights(self, step: jax.Array, counts: Metrics) -> Metrics:
        """What each term is multiplied by; counts: over all devices."""
        anchors = counts.get("nt_xent", 0)  # two of each row with a positive
        contrastive = (step >= self.warmup_steps) & (anchors >= 2 * MIN_READY_ROWS)
        return {
            "focal": jnp.asarray(self.loss.focal_weight),
            "nt_xent": jnp.where(contrastive, 1 - self.loss.focal_weight, 0.0),
            "box": jnp.asarray(self.loss.box_weight),
        }

    def gradient_norms(
        self,
        params: Any,
        batch_stats: Any,
        feature_map: jax.Array,
        batch: Batch,
        affine: jax.Array | None,
        radiomics: jax.Array,
    ) -> Metrics:
        """Norm of each unweighted term's gradient at the feature map: through the heads only, hence cheap.

        NaN for a term that no row of the batch has.
        """

        def local_terms(a: jax.Array) -> tuple[Metrics, Metrics]:
            sums, counts, _ = self.terms(params, batch_stats, a, batch, affine, radiomics)
            counts = jax.lax.psum(counts, AXIS)
            return {k: sums[k] / jnp.maximum(counts[k], 1) for k in sums}, counts

        terms, pull_back, counts = jax.vjp(local_terms, feature_map, has_aux=True)
        norms = {}
        for name in terms:
            one = {
                k: jnp.ones_like(v) if k == name else jnp.zeros_like(v) for k, v in terms.items()
            }
            (gradient,) = pull_back(one)
            norm = jnp.sqrt(jax.lax.psum((gradient**2).sum(), AXIS))
            norms[f"grad_norm_{name}"] = jnp.where(counts[name] > 0, norm, jnp.nan)
        return norms

    def logits_and_maps(self, params: Any, feature_map: jax.Array) -> tuple[jax.Array, jax.Array]:
        """f32 [b u v k] → (logits [b c], the raw class maps [b c u v] of that feature map)."""

        def classify(a: jax.Array) -> jax.Array:
            return self._head(params, a, "classify")

        return classify(feature_map), gradcam.class_maps(
            classify, feature_map, self.model.n_findings
        )

    def _pairs(
        self,
        params: Any,
        batch_stats: Any,
        feature_map: jax.Array,
        batch: Batch,
        radiomics: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
        """(z of each image [b p], z of its positive [b p], which rows have one [b], moved batch statistics).

        Two augmented views went through the image encoder as one batch of 2b: they share its BatchNorm statistics.
        """
        z_image = self._head(params, feature_map, "project_image")
        if self.loss.uses_second_view:
            first, second = jnp.split(z_image, 2)
            return first, second, jnp.ones_like(batch["ready"]), batch_stats
        z_radiomics, changed = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            radiomics[:, np.flatnonzero(self.feature_columns)],
            batch["ready"],
            train=True,
            method="project_radiomics",
            mutable=["batch_stats"],
        )
        return z_image, z_radiomics, batch["ready"], changed["batch_stats"]

    def _head(self, params: Any, feature_map: jax.Array, method: str) -> jax.Array:
        output: Any = self.model.apply({"params": params}, feature_map, method=method)
        return output
