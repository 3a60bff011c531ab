"""The terms of the loss: what each one measures, and its weight. To add a term, add it to `TERMS`.

The formulas are in losses.py. Axes: b batch on this device · u v map cells · c findings · p projection · f radiomic
features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from kacl_jax.models.kacl import KACL, MIN_READY_ROWS
from kacl_jax.runtime.devices import AXIS
from kacl_jax.step import augment, losses
from kacl_jax.step.box_area import turned_union_area, union_area
from kacl_jax.step.forward import Forward


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """total = λ · focal + (1 − λ) · w · NT-Xent + box_weight · guidance, λ = focal_weight, w = nt_xent_weight. The keys
    `config.loss.*`.

    positive: what NT-Xent pairs an image with: the radiomics of its region, or a second augmented view of itself.
    turned_box: what guides the map where the augmentation turned a box: the 'exact' turned box or its upright 'hull'.
    """

    focal_weight: float
    focal_alpha: float
    focal_gamma: float
    temperature: float
    mask_same_patient: bool
    box_weight: float
    positive: Literal["radiomics", "augmented"] = "radiomics"
    turned_box: Literal["exact", "hull"] = "exact"
    nt_xent_weight: float = 1.0

    @property
    def uses_radiomics(self) -> bool:
        return self.focal_weight < 1 and self.positive == "radiomics"

    @property
    def uses_second_view(self) -> bool:
        return self.focal_weight < 1 and self.positive == "augmented"


class TermInputs(NamedTuple):
    """What a term is measured from.

    model, params: for a term that has a head of its own.
    feature_columns: the radiomic features that the radiomics encoder sees.
    forward: the pass of this batch, with z-scored radiomics.
    logits, maps: of the first views, with gradients; the class maps are raw.
    """

    model: KACL
    params: Any
    settings: LossSettings
    feature_columns: tuple[bool, ...]
    forward: Forward
    logits: Float32[Array, "b c"]
    maps: Float32[Array, "b c u v"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A term's sum on this device, and over how many elements; batch_stats: where the term moved them, else None."""

    sum: Float32[Array, ""]
    count: Float32[Array, ""]
    batch_stats: Any = None


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """One term of the loss.

    measure: called once for every batch, and again for the norm of the term's gradient.
    weight: what its mean over the global batch is multiplied by; None where these settings leave the term out.
    after_warmup: weighs 0 during the warm-up, and later in steps in which fewer than `min_count` elements, over all
      devices, have it.
    """

    measure: Callable[[TermInputs], Measured]
    weight: Callable[[LossSettings], float | None]
    after_warmup: bool = False
    min_count: int = 0


def terms_in_use(settings: LossSettings) -> dict[str, LossTerm]:
    """Name → term of those that these settings do not leave out."""
    return {name: term for name, term in TERMS.items() if term.weight(settings) is not None}


def _focal(inputs: TermInputs) -> Measured:
    """The mean over the images that have a known label."""
    settings, labels = inputs.settings, inputs.forward.batch["labels"]
    loss = losses.focal_loss(
        inputs.logits, labels, alpha=settings.focal_alpha, gamma=settings.focal_gamma
    ).sum(1)
    return Measured(loss.sum(), (labels >= 0).any(1).astype(loss.dtype).sum())


def _nt_xent(inputs: TermInputs) -> Measured:
    """The two augmented views went through the image encoder as one batch: they share its BatchNorm statistics."""
    settings, forward = inputs.settings, inputs.forward
    z_image: Any = inputs.model.apply(
        {"params": inputs.params}, forward.feature_map, method="project_image"
    )
    if settings.uses_second_view:
        z_image, z_positive = jnp.split(z_image, 2)
        ready, batch_stats = jnp.ones_like(forward.batch["ready"]), None
    else:
        ready = forward.batch["ready"]
        z_positive, batch_stats = _project_radiomics(inputs)
    loss, weight = losses.nt_xent(
        z_image,
        z_positive,
        ready=ready,
        patient_id=forward.batch["patient_id"],
        temperature=settings.temperature,
        mask_same_patient=settings.mask_same_patient,
        axis_name=AXIS,
    )
    return Measured(loss.sum(), weight.sum(), batch_stats)


def _project_radiomics(inputs: TermInputs) -> tuple[Float32[Array, "b p"], Any]:
    """(z_r, the moved batch statistics)."""
    forward = inputs.forward
    assert forward.radiomics is not None
    z_radiomics, changed = inputs.model.apply(
        {"params": inputs.params, "batch_stats": forward.batch_stats},
        forward.radiomics[:, np.flatnonzero(inputs.feature_columns)],
        forward.batch["ready"],
        train=True,
        method="project_radiomics",
        mutable=["batch_stats"],
    )
    return z_radiomics, changed["batch_stats"]


def _box_guidance(inputs: TermInputs) -> Measured:
    batch, affine = inputs.forward.batch, inputs.forward.affine
    boxes, cells = batch["boxes"], inputs.maps.shape[2:]
    if affine is None:
        area = union_area(boxes, *cells)
    elif inputs.settings.turned_box == "hull":
        area = union_area(augment.warp_boxes(boxes, affine), *cells)
    else:
        area = turned_union_area(boxes, affine, *cells)
    loss, weight = losses.box_guidance(inputs.maps, area, batch["has_box"])
    return Measured(loss.sum(), weight.sum())


# The names under which metrics.jsonl has the terms and, as grad_norm_<name>, their gradients.
TERMS = {
    "focal": LossTerm(_focal, weight=lambda settings: settings.focal_weight),
    "nt_xent": LossTerm(
        _nt_xent,
        weight=lambda settings: (
            (1 - settings.focal_weight) * settings.nt_xent_weight
            if settings.focal_weight < 1
            else None
        ),
        after_warmup=True,
        min_count=2 * MIN_READY_ROWS,  # two anchors for each row with a positive
    ),
    "box": LossTerm(_box_guidance, weight=lambda settings: settings.box_weight or None),
}
