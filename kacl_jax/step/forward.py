"""The image encoder's pass over one training batch: augment, normalise, encode once.

Axes: b batch on this device · h w pixels · u v map cells · k channels · f radiomic features.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kacl_jax.models.kacl import KACL
from kacl_jax.step.augment import Augmentation
from kacl_jax.step.scaling import normalise
from kacl_jax.step.state import Batch


class Forward(NamedTuple):
    """One batch after the image encoder: all that the loss and the maps need, beside the parameters.

    batch: its rows, as in `programs.Programs.train_step`.
    affine: float32 [b 2 3], how the (first) views were changed; None without a change.
    feature_map: float32 [b u v k], followed by that of the second views, [2b u v k], if there are some.
    early_map: float32 [b s t k], the map before the last stage if regions come from it, else None.
    batch_stats: the running statistics of BatchNorm, moved by this pass.
    radiomics: float32 [b f], z-scored; None in a pass that has no loss.
    """

    batch: Batch
    affine: jax.Array | None
    feature_map: jax.Array
    early_map: jax.Array | None
    batch_stats: Any
    radiomics: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """How a batch goes through the image encoder in training.

    two_views: encode a second augmented view of each image, too.
    early: stop once before the last stage, because regions come from the map there.
    """

    model: KACL
    augmentation: Augmentation
    seed: int
    two_views: bool
    early: bool

    def augment(self, step: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """uint8 [b h w 1] → (normalised, augmented float32 [b h w 3], the affine map used or None).

        With two views the second ones follow, [2b h w 3]; the affine map is that of the first views.
        """
        view = functools.partial(
            self.augmentation.view, batch["image"], batch["image_id"], seed=self.seed, step=step
        )
        grey, affine = view(number=0)
        images = normalise(grey)
        if self.two_views:
            second, _ = view(number=1)
            images = jnp.concatenate([images, normalise(second)])
        return images, affine

    def encode(
        self,
        params: Any,
        batch_stats: Any,
        images: jax.Array,
        batch: Batch,
        affine: jax.Array | None,
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
        self, method: str, params: Any, batch_stats: Any, inputs: jax.Array
    ) -> tuple[jax.Array, Any]:
        output, changed = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            method=method,
            mutable=["batch_stats"],
        )
        return output, changed["batch_stats"]
