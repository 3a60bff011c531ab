"""ResNet-18 and ResNet-50 (He et al. 2016) in torchvision's layout.

Axes: b batch · h w pixels · u v map cells · i k channels. Parameters are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from kacl_jax.models.layers import Conv, EncoderPart, batch_norm, max_pool


class ResNetBlock(nn.Module):
    """Residual block: basic (3×3, 3×3) or bottleneck (1×1, 3×3, 1×1, with the stride in the 3×3: 'v1.5')."""

    width: int
    stride: int
    bottleneck: bool
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], train: bool) -> Float[Array, "b u v k"]:
        norm = partial(
            batch_norm, train=train, epsilon=1e-5, dtype=self.dtype, axis_name=self.axis_name
        )

        def conv(features: int, kernel: int, stride: int, name: str) -> Conv:
            return Conv(features, kernel, stride, kernel // 2, self.dtype, name=name)

        features = self.width * (4 if self.bottleneck else 1)
        kernels = (1, 3, 1) if self.bottleneck else (3, 3)
        strided_index = 1 if self.bottleneck else 0
        y = x
        for index, kernel in enumerate(kernels):
            last = index == len(kernels) - 1
            y = conv(
                features if last else self.width,
                kernel,
                self.stride if index == strided_index else 1,
                f"conv{index + 1}",
            )(y)
            y = norm(f"bn{index + 1}")(y)
            y = y if last else nn.relu(y)
        if x.shape[-1] != features:
            x = norm("downsample_bn")(conv(features, 1, self.stride, "downsample_conv")(x))
        return nn.relu(y + x)


class ResNet(nn.Module):
    """torchvision's ResNet up to the last stage, which has 512 or 2048 channels.

    part: 'early' stops before the last of the four stages; 'last' starts from the output of 'early'.
    """

    stage_sizes: tuple[int, ...]
    bottleneck: bool
    output_stride: int = 32
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float32[Array, "b h w i"], train: bool, part: EncoderPart = "whole"
    ) -> Float32[Array, "b u v k"]:
        x = images.astype(self.dtype)
        if part != "last":
            x = Conv(64, 7, 2, 3, self.dtype, name="conv1")(x)
            norm = batch_norm(
                "bn1", train=train, epsilon=1e-5, dtype=self.dtype, axis_name=self.axis_name
            )
            x = nn.relu(norm(x))
            x = max_pool(x)
            for stage in (0, 1, 2):
                x = self._stage(stage, 1 if stage == 0 else 2, x, train)
        if part != "early":
            x = self._stage(3, 1 if self.output_stride == 16 else 2, x, train)
        return x.astype(jnp.float32)

    def _stage(
        self, stage: int, stride: int, x: Float[Array, "b h w i"], train: bool
    ) -> Float[Array, "b u v k"]:
        for block in range(self.stage_sizes[stage]):
            x = ResNetBlock(
                64 * 2**stage,
                stride if block == 0 else 1,
                self.bottleneck,
                self.dtype,
                self.axis_name,
                name=f"layer{stage + 1}_{block}",
            )(x, train)
        return x


def published_layer(modules: Sequence[str]) -> str:
    """('layer1_0', 'downsample_bn') → 'layer1.0.downsample.1'."""
    downsample = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
    return ".".join(downsample.get(module, module.replace("_", ".")) for module in modules)
