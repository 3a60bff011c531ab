"""Grad-CAM by `jax.grad` of what follows a feature map, and which finding's map marks the region in training.

Axes: b batch · u v map cells · k channels · c findings.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32


def class_maps(
    classify: Callable[[Float32[Array, "b u v k"]], Float32[Array, "b c"]],
    feature_map: Float32[Array, "b u v k"],
    n_findings: int,
) -> Float32[Array, "b {n_findings} u v"]:
    """Grad-CAM of every finding at a given feature map (Selvaraju et al. 2017, eq. 1 and 2, no ReLU).

    M_c = Σ_k A_k · ∂logit_c/∂(mean A_k). Only the head is differentiated: no second pass through the
    encoder. For a head that is linear in the pooled map this is the CAM of Zhou et al. 2016.

    Args:
      classify: the head, which gives the logits; rows must not influence each other.
      n_findings: c.

    Returns:
      raw maps: signed, not scaled.
    """

    def channel_weights(finding: Float32[Array, "c"]) -> Float32[Array, "b k"]:
        gradient = jax.grad(lambda a: (classify(a) * finding).sum())(feature_map)
        return gradient.sum((1, 2))

    weights = jax.vmap(channel_weights)(jnp.eye(n_findings, dtype=feature_map.dtype))
    return jnp.einsum("buvk,cbk->bcuv", feature_map, weights, precision="highest")


def finding_map(
    classify: Callable[[Float32[Array, "b u v k"]], Float32[Array, "b c"]],
    feature_map: Float32[Array, "b u v k"],
    finding: Int32[Array, "b"],
) -> Float32[Array, "b u v"]:
    """`class_maps` of one finding per image, for a head that is too expensive to differentiate for every finding."""

    def logit_sum(a: Float32[Array, "b u v k"]) -> Float32[Array, ""]:
        return jnp.take_along_axis(classify(a), finding[:, None], axis=1).sum()

    weights = jax.grad(logit_sum)(feature_map).sum((1, 2))
    return jnp.einsum("buvk,bk->buv", feature_map, weights, precision="highest")


def region_finding(logits: Float[Array, "b c"], labels: Float[Array, "b c"]) -> Int32[Array, "b"]:
    """The finding whose map marks the region in training: the positive finding with the highest logit.

    An image without a positive label takes the finding with the highest logit.
    """
    candidates = jnp.where((labels > 0).any(1, keepdims=True), labels > 0, True)
    return jnp.argmax(jnp.where(candidates, logits, -jnp.inf), axis=1).astype(jnp.int32)
