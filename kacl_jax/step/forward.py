"""The image encoder's pass over one training batch: augment, scale, encode once.

Axes: b batch on this device · n views of it · h w pixels · m channels of an image · s t and u v map cells ·
i k channels · f radiomic features.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from kacl_jax.models.input_scales import InputScale
from kacl_jax.models.kacl import KACL
from kacl_jax.step.augment import Augmentation
from kacl_jax.step.state import Batch


class Forward(NamedTuple):
    """One batch after the image encoder: all that the loss and the maps need, beside the parameters.

    batch: its rows, as in `programs.Programs.train_step`.
    affine: how the (first) views were changed; None without a change.
    feature_map: n is b, or 2b where the maps of the second views follow.
    early_map: the map before the last stage if regions come from it, else None.
    batch_stats: the running statistics of BatchNorm, moved by this pass.
    radiomics: z-scored; None in a pass that has no loss.
    """

    batch: Batch
    affine: Float32[Array, "b 2 3"] | None
    feature_map: Float32[Array, "n u v k"]
    early_map: Float32[Array, "b s t i"] | None
    batch_stats: Any
    radiomics: Float32[Array, "b f"] | None = None


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """How a batch goes through the image encoder in training.

    input_scale: on which the encoder sees grey levels.
    two_views: encode a second augmented view of each image, too.
    early: stop once before the last stage, because regions come from the map there.
    frozen_statistics: BatchNorm uses its running statistics, as in evaluation, and does not move them.
    """

    model: KACL
    augmentation: Augmentation
    input_scale: InputScale
    seed: int
    two_views: bool
    early: bool
    frozen_statistics: bool

    def augment(
        self, step: Int32[Array, ""], batch: Batch
    ) -> tuple[Float32[Array, "n h w m"], Float32[Array, "b 2 3"] | None]:
        """(the batch's images, augmented and scaled; the affine map used or None).

        With two views the second ones follow, and n is 2b; the affine map is that of the first views.
        """
        view = functools.partial(
            self.augmentation.view, batch["image"], batch["image_id"], seed=self.seed, step=step
        )
        grey, affine = view(number=0)
        images = self.input_scale.apply(grey)
        if self.two_views:
            second, _ = view(number=1)
            images = jnp.concatenate([images, self.input_scale.apply(second)])
        return images, affine

    def encode(
        self,
        params: Any,
        batch_stats: Any,
        images: Float32[Array, "n h w m"],
        batch: Batch,
        affine: Float32[Array, "b 2 3"] | None,
    ) -> Forward:
        """Encode what `augment` gave for `batch`."""
        early_map = None
        if self.early:
            early_map, batch_stats = self._encode_part("early_map", params, batch_stats, images)
            feature_map, batch_stats = self._encode_part(
                "last_stage", params, batch_stats, early_map
            )
        else:
            feature_map, batch_stats = self._encode_part("feature_map", params, batch_stats, images)
        return Forward(batch, affine, feature_map, early_map, batch_stats)

    def _encode_part(
        self, method: str, params: Any, batch_stats: Any, inputs: Float32[Array, "n h w i"]
    ) -> tuple[Float32[Array, "n u v k"], Any]:
        output, changed = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=not self.frozen_statistics,
            method=method,
            mutable=["batch_stats"],
        )
        return output, changed["batch_stats"]
