"""The losses of KACL, per element or per anchor; whoever calls them reduces.

Axes: b batch on this device · N batch over all devices · c findings · p projection · u v map cells.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def focal_loss(
    logits: Float[Array, "b c"], labels: Float[Array, "b c"], *, alpha: float, gamma: float
) -> Float[Array, "b c"]:
    """Sigmoid focal loss per element (Lin et al. 2017, eq. 5): α_t (1 − p_t)^γ · (−log p_t).

    Args:
      labels: 0 or 1; negative where it is unknown.
      alpha: weight of the positive class, in (0, 1); negatives weigh 1 − α.
      gamma: focusing exponent ≥ 0; 0 is α-weighted binary cross-entropy.

    Returns:
      ≥ 0; 0 where the label is unknown.
    """
    towards_label = logits * (2 * labels - 1)
    weight = alpha * labels + (1 - alpha) * (1 - labels)
    # (1 − p_t)^γ in log space: its gradient stays finite for any γ ≥ 0.
    modulation = jnp.exp(gamma * jax.nn.log_sigmoid(-towards_label))
    loss = weight * modulation * -jax.nn.log_sigmoid(towards_label)
    return jnp.where(labels >= 0, loss, 0.0)


def nt_xent(
    z_image: Float[Array, "b p"],
    z_positive: Float[Array, "b p"],
    *,
    ready: Bool[Array, "b"],
    patient_id: Int[Array, "b"],
    temperature: float,
    mask_same_patient: bool,
    axis_name: str | None = None,
) -> tuple[Float[Array, "2*b"], Float[Array, "2*b"]]:
    """Symmetric NT-Xent (Chen et al. 2020, eq. 1) between the two views of each X-ray.

    Each of this device's 2b views is an anchor; its positive is the same X-ray's other view; its negatives are
    all other ready views of all devices, as in `optax.losses.ntxent`. A row that is not ready is neither anchor,
    nor positive, nor negative.

    Args:
      z_image, z_positive: unit norm; the second of the X-ray's radiomics, or of a second augmented view.
      temperature: > 0.
      mask_same_patient: take other images of the anchor's patient out of the denominator.
      axis_name: the mapped axis over which negatives are gathered; None on one device.

    Returns:
      (loss, weight): the loss per anchor, 0 where the weight is 0. The mean over the global batch is
      psum(loss.sum()) / psum(weight.sum()).
    """
    b = z_image.shape[0]
    row = jnp.arange(b)
    everyone = (z_image, z_positive, ready, patient_id)
    if axis_name is not None:
        row = row + jax.lax.axis_index(axis_name) * b
        everyone = jax.lax.all_gather(everyone, axis_name, tiled=True)
    all_image, all_positive, all_ready, all_patient = everyone
    n = all_ready.shape[0]

    similarity = jnp.matmul(
        jnp.concatenate([z_image, z_positive]),
        jnp.concatenate([all_image, all_positive]).T,
        precision="highest",  # the default would round cosines to 8 to 11 bits on an accelerator
    )
    similarity /= temperature
    same_image = jnp.tile(row[:, None] == jnp.arange(n), (2, 2))
    same_view = jnp.repeat(jnp.arange(2), b)[:, None] == jnp.repeat(jnp.arange(2), n)
    positive = same_image & ~same_view
    candidate = jnp.tile(all_ready, 2) & ~(same_image & same_view)
    if mask_same_patient:
        same_patient = jnp.tile(patient_id[:, None] == all_patient, (2, 2))
        candidate = candidate & (positive | ~same_patient)

    anchor = jnp.tile(ready, 2)
    # An anchor that is not ready may have no candidate at all: keep its (unused) row finite.
    candidate = candidate | ~anchor[:, None]
    log_denominator = jax.nn.logsumexp(jnp.where(candidate, similarity, -jnp.inf), axis=1)
    loss = log_denominator - jnp.where(positive, similarity, 0.0).sum(1)
    return jnp.where(anchor, loss, 0.0), anchor.astype(loss.dtype)


def box_guidance(
    class_maps: Float[Array, "b c u v"], area: Float[Array, "b c u v"], has_box: Bool[Array, "b c"]
) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Cross-entropy that pulls a finding's map onto the union of its truth boxes, per annotated (image, finding).

    −Σ_cell share · log softmax(M_c), where `share` is the union's area in each cell, normalised to sum 1, and the
    softmax (temperature 1) runs over the cells of the raw class map.

    Args:
      class_maps: raw, with gradients (see `gradcam.class_maps`).
      area: of the boxes' union in each cell (see box_area.py), in the frame of the maps; anything where has_box is
        False.

    Returns:
      (loss, weight): the loss is 0 where the weight is 0. Boxes that are all outside the frame have weight 0.
    """
    b, c, u, v = class_maps.shape
    total = area.sum((2, 3))
    annotated = has_box & (total > 0)
    share = area / jnp.where(annotated, total, 1.0)[..., None, None]
    log_share = jax.nn.log_softmax(class_maps.reshape(b, c, u * v), axis=-1).reshape(b, c, u, v)
    loss = -(share * log_share).sum((2, 3))
    return jnp.where(annotated, loss, 0.0), annotated.astype(loss.dtype)
