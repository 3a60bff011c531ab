"""Grad-CAM by `jax.grad` of what follows a feature map, and which finding's map marks the region in training.

Axes: b batch · u v map cells · k channels · c findings.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def class_maps(
    classify: Callable[[jax.Array], jax.Array], feature_map: jax.Array, n_findings: int
) -> jax.Array:
    """Grad-CAM of every finding at a given feature map (Selvaraju et al. 2017, eq. 1 and 2, no ReLU).

    M_c = Σ_k A_k · ∂logit_c/∂(mean A_k). Only the head is differentiated: no second pass through the
    encoder. For a head that is linear in the pooled map this is the CAM of Zhou et al. 2016.

    Args:
      classify: the head, float32 [b u v k] → logits [b c]; rows must not influence each other.
      feature_map: float32 [b u v k].
      n_findings: c.

    Returns:
      float32 [b c u v], raw: signed, not scaled.
    """

    def channel_weights(finding: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda a: (classify(a) * finding).sum())(feature_map)
        return gradient.sum((1, 2))

    weights = jax.vmap(channel_weights)(jnp.eye(n_findings, dtype=feature_map.dtype))
    return jnp.einsum("buvk,cbk->bcuv", feature_map, weights, precision="highest")


def finding_map(
    classify: Callable[[jax.Array], jax.Array], feature_map: jax.Array, finding: jax.Array
) -> jax.Array:
    """`class_maps` of one finding per image, for a head that is too expensive to differentiate for every finding.

    finding: int32 [b]; the rest as in `class_maps`. Returns float32 [b u v].
    """

    def logits(a: jax.Array) -> jax.Array:
        return jnp.take_along_axis(classify(a), finding[:, None], axis=1).sum()

    weights = jax.grad(logits)(feature_map).sum((1, 2))
    return jnp.einsum("buvk,bk->buv", feature_map, weights, precision="highest")


def region_finding(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The finding whose map marks the region in training: the positive finding with the highest logit.

    An image without a positive label takes the finding with the highest logit. float [b c], [b c] → int32 [b].
    """
    candidates = jnp.where((labels > 0).any(1, keepdims=True), labels > 0, True)
    return jnp.argmax(jnp.where(candidates, logits, -jnp.inf), axis=1).astype(jnp.int32)
