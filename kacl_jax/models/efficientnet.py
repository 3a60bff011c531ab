"""EfficientNet-Lite0 in TensorFlow's layout, with the layer names of its pip package.

Axes: b batch · h w pixels · u v map cells · i k channels. Parameters are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from kacl_jax.models.layers import Conv, DepthwiseConv, EncoderPart, batch_norm

# (kernel, stride, expansion, output channels, repeats): Tan & Le 2019, table 1, without
# squeeze-and-excitation and with ReLU6 ("Lite").
_LITE0_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_LITE0_LAST_STRIDED_STAGE = 5


class InvertedBottleneck(nn.Module):
    """EfficientNet-Lite's block: 1×1 expansion, k×k depthwise, linear 1×1 projection."""

    features: int
    kernel: int
    stride: int
    expansion: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], train: bool) -> Float[Array, "b u v k"]:
        norm = partial(
            batch_norm, train=train, epsilon=1e-3, dtype=self.dtype, axis_name=self.axis_name
        )

        y = x
        if self.expansion != 1:
            wide = x.shape[-1] * self.expansion
            y = Conv(wide, 1, 1, "SAME", self.dtype, name="expand_conv")(y)
            y = nn.relu6(norm("bn0")(y))
        y = DepthwiseConv(self.kernel, self.stride, self.dtype, name="depthwise_conv")(y)
        y = nn.relu6(norm("bn1")(y))
        y = Conv(self.features, 1, 1, "SAME", self.dtype, name="project_conv")(y)
        y = norm("bn2")(y)
        return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its 1280-channel head convolution.

    part: 'early' stops at 112 channels, before the stage with the last stride; 'last' starts from its output.
    """

    output_stride: int = 32
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float32[Array, "b h w i"], train: bool, part: EncoderPart = "whole"
    ) -> Float32[Array, "b u v k"]:
        norm = partial(
            batch_norm, train=train, epsilon=1e-3, dtype=self.dtype, axis_name=self.axis_name
        )

        x = images.astype(self.dtype)
        split = _LITE0_LAST_STRIDED_STAGE
        if part != "last":
            x = Conv(32, 3, 2, "SAME", self.dtype, name="conv_stem")(x)
            x = nn.relu6(norm("bn0")(x))
            x = self._stages(range(split), x, train)
        if part != "early":
            x = self._stages(range(split, len(_LITE0_STAGES)), x, train)
            x = Conv(1280, 1, 1, "SAME", self.dtype, name="conv_head")(x)
            x = nn.relu6(norm("bn1")(x))
        return x.astype(jnp.float32)

    def _stages(
        self, stages: range, x: Float[Array, "b h w i"], train: bool
    ) -> Float[Array, "b u v k"]:
        block = sum(repeats for *_, repeats in _LITE0_STAGES[: stages.start])
        for stage in stages:
            kernel, stride, expansion, features, repeats = _LITE0_STAGES[stage]
            if stage == _LITE0_LAST_STRIDED_STAGE and self.output_stride == 16:
                stride = 1
            for repeat in range(repeats):
                x = InvertedBottleneck(
                    features,
                    kernel,
                    stride if repeat == 0 else 1,
                    expansion,
                    self.dtype,
                    self.axis_name,
                    name=f"block{block}",
                )(x, train)
                block += 1
        return x


def published_layer(modules: Sequence[str]) -> str:
    """('block3', 'expand_conv') → '_blocks.3._expand_conv'."""
    return ".".join(f"_{module.replace('block', 'blocks.')}" for module in modules)
