"""KACL's two networks (paper's figure 1): image encoder, radiomics encoder, heads.

    v  → feature_map → classify → logits          (focal loss)
                     → project_image → z_i  ┐
    v' → project_radiomics           → z_r  ┴──── (NT-Xent)

Everything is one Linen module with several methods on one tree of variables, so that a train step can compute the
feature map once and differentiate the heads at it (Grad-CAM without a second forward pass).

Axes: b batch · h w pixels · m channels of an image · s t cells and i channels of the map before the last stage ·
u v cells and k channels of the last map · c findings · d embedding · p projection · f radiomic features.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32

from kacl_jax.models.encoders import ENCODERS
from kacl_jax.models.layers import BATCH_NORM_MOMENTUM

# With fewer ready rows over all devices the radiomics encoder's running statistics do not change, and the train step
# computes no contrastive loss.
MIN_READY_ROWS = 8

# The untrained classifier's probability for every finding. Most labels are easy negatives; a bias of
# −log((1−π)/π) with π = 0.1 keeps them from dominating the loss in the first steps
# (Lin et al. 2017, RetinaNet, §3.3, who use 0.01 for a much rarer positive class).
PRIOR_PROBABILITY = 0.1
RADIOMICS_WIDTHS = (128, 128)

# Accelerators multiply with fewer bits by default. The heads are small and Grad-CAM differentiates one of them, so
# they use full precision.
Dense = functools.partial(nn.Dense, precision="highest")


class KACL(nn.Module):
    """The complete model; collections 'params' (float32) and 'batch_stats' (float32).

    encoder: one of `encoders.ENCODERS`.
    output_stride: 32, or 16 to leave out the last stage's stride (grid twice as fine, same weights).
    dtype: what the image encoder computes in; parameters, heads and every output are float32.
    axis_name: mesh axis over which BatchNorm statistics are shared in training.
    """

    encoder: str
    n_findings: int
    output_stride: int = 32
    projection_dim: int = 128
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        if self.encoder not in ENCODERS or self.output_stride not in (16, 32):
            raise ValueError(
                f"there is no encoder {self.encoder!r} with output stride {self.output_stride}"
            )
        self.image_encoder = ENCODERS[self.encoder].build(
            self.output_stride, self.dtype, self.axis_name
        )
        bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        self.classifier = Dense(self.n_findings, bias_init=nn.initializers.constant(bias))
        self.radiomics_encoder = RadiomicsEncoder(self.axis_name)
        self.image_head = ProjectionHead(self.projection_dim)
        self.radiomics_head = ProjectionHead(self.projection_dim)

    def feature_map(
        self, images: Float32[Array, "b h w m"], train: bool
    ) -> Float32[Array, "b u v k"]:
        """Images on the encoder's scale → last-stage features, all ≥ 0."""
        return self.image_encoder(images, train)

    def early_map(
        self, images: Float32[Array, "b h w m"], train: bool
    ) -> Float32[Array, "b s t i"]:
        """The same images → features before the last stage, which may be negative."""
        return self.image_encoder(images, train, part="early")

    def last_stage(
        self, early_map: Float32[Array, "b s t i"], train: bool
    ) -> Float32[Array, "b u v k"]:
        """`early_map` → `feature_map`."""
        return self.image_encoder(early_map, train, part="last")

    def classify_early(
        self, early_map: Float32[Array, "b s t i"]
    ) -> Float32[Array, "b {self.n_findings}"]:
        """Logits, with running statistics, so that images do not influence each other."""
        return self.classify(self.last_stage(early_map, train=False))

    def classify(
        self, feature_map: Float32[Array, "b u v k"]
    ) -> Float32[Array, "b {self.n_findings}"]:
        """Logits: mean over cells, then one linear layer."""
        return self.classifier(feature_map.mean((1, 2)))

    def project_image(
        self, feature_map: Float32[Array, "b u v k"]
    ) -> Float32[Array, "b {self.projection_dim}"]:
        """z_i, unit norm."""
        return self.image_head(feature_map.mean((1, 2)))

    def project_radiomics(
        self, radiomics: Float32[Array, "b f"], ready: Bool[Array, "b"], train: bool
    ) -> Float32[Array, "b {self.projection_dim}"]:
        """z-scored features → z_r, unit norm.

        A row that is not ready may have any values, even NaN: it changes no statistic, no other row and
        no gradient, and its own output is finite.
        """
        radiomics = jnp.where(ready[:, None], radiomics, 0.0)
        z = self.radiomics_head(self.radiomics_encoder(radiomics, ready, train))
        return jnp.where(ready[:, None], z, lax.stop_gradient(z))

    def __call__(
        self,
        images: Float32[Array, "b h w m"],
        radiomics: Float32[Array, "b f"],
        ready: Bool[Array, "b"],
        train: bool,
    ) -> tuple[
        Float32[Array, "b u v k"],
        Float32[Array, "b c"],
        Float32[Array, "b p"],
        Float32[Array, "b p"],
    ]:
        """(feature_map, logits, z_i, z_r); uses every parameter, which `init` needs."""
        feature_map = self.feature_map(images, train)
        return (
            feature_map,
            self.classify(feature_map),
            self.project_image(feature_map),
            self.project_radiomics(radiomics, ready, train),
        )


class ProjectionHead(nn.Module):
    """Dense-ReLU-Dense, then L2 normalisation."""

    features: int

    @nn.compact
    def __call__(self, embedding: Float32[Array, "b d"]) -> Float32[Array, "b {self.features}"]:
        hidden = nn.relu(Dense(embedding.shape[-1])(embedding))
        return l2_normalise(Dense(self.features)(hidden))


class RadiomicsEncoder(nn.Module):
    """Dense-BatchNorm-ReLU twice."""

    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Float32[Array, "b f"], ready: Bool[Array, "b"], train: bool
    ) -> Float32[Array, "b d"]:
        for width in RADIOMICS_WIDTHS:
            # No bias: BatchNorm adds one.
            x = Dense(width, use_bias=False)(x)
            x = nn.relu(MaskedBatchNorm(self.axis_name)(x, ready, train))
        return x


class MaskedBatchNorm(nn.Module):
    """BatchNorm over the ready rows of the global batch only.

    Mean and (biased) variance are psum(sums) / psum(counts) over `axis_name`: a mean of per-device
    means is wrong for unequal counts, and NaN if a device has no ready row. With fewer than
    MIN_READY_ROWS ready rows it normalises by the running statistics, as in evaluation, and does not
    change them. The output for rows that are not ready is finite: that of a zero row.
    """

    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Float32[Array, "b d"], ready: Bool[Array, "b"], train: bool
    ) -> Float32[Array, "b d"]:
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, width, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, width, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        mean, var = running_mean.value, running_var.value
        x = jnp.where(ready[:, None], x, 0.0)
        if train and not self.is_initializing():
            count = self._sum_over_devices(ready.sum(dtype=jnp.float32))
            enough = count >= MIN_READY_ROWS
            divisor = jnp.maximum(count, 1.0)
            batch_mean = self._sum_over_devices(x.sum(0)) / divisor
            centred = jnp.where(ready[:, None], x - batch_mean[None], 0.0)
            batch_var = self._sum_over_devices((centred**2).sum(0)) / divisor
            mean = jnp.where(enough, batch_mean, mean)
            var = jnp.where(enough, batch_var, var)
            momentum = BATCH_NORM_MOMENTUM
            running_mean.value = jnp.where(
                enough, momentum * running_mean.value + (1 - momentum) * mean, running_mean.value
            )
            running_var.value = jnp.where(
                enough, momentum * running_var.value + (1 - momentum) * var, running_var.value
            )
        gain = lax.rsqrt(var + 1e-5) * scale
        return (x - mean[None]) * gain[None] + bias[None]

    def _sum_over_devices(self, value: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
        return value if self.axis_name is None else jax.lax.psum(value, self.axis_name)


def l2_normalise(x: Float32[Array, "b p"]) -> Float32[Array, "b p"]:
    """Scales rows to unit length; values and gradients are finite for a zero row."""
    square = (x**2).sum(-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-12))
