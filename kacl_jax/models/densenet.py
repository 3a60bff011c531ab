"""DenseNet-121 (Huang et al. 2017) in torchvision's layout, which timm and TorchXRayVision share.

Axes: b batch · h w pixels · u v map cells · i k channels. Parameters are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from kacl_jax.models.layers import (
    KAIMING_FAN_IN,
    BatchNorm,
    Conv,
    EncoderPart,
    average_pool,
    batch_norm,
    max_pool,
)

_GROWTH = 32  # channels that each layer adds
_BOTTLENECK = 4 * _GROWTH
_LAYERS_OF_BLOCK = (6, 12, 24, 16)


def _tools(
    train: bool, dtype: Any, axis_name: str | None
) -> tuple[Callable[[str], BatchNorm], Callable[[str, int, int], Conv]]:
    """(name → BatchNorm, (name, features, kernel) → convolution without stride)."""
    norm = partial(batch_norm, train=train, epsilon=1e-5, dtype=dtype, axis_name=axis_name)

    def conv(name: str, features: int, kernel: int) -> Conv:
        return Conv(features, kernel, 1, kernel // 2, dtype, KAIMING_FAN_IN, name=name)

    return norm, conv


class DenseLayer(nn.Module):
    """BatchNorm-ReLU-1×1, BatchNorm-ReLU-3×3: the channels that it adds."""

    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h w 32"]:
        norm, conv = _tools(train, self.dtype, self.axis_name)
        x = conv("conv1", _BOTTLENECK, 1)(nn.relu(norm("norm1")(x)))
        return conv("conv2", _GROWTH, 3)(nn.relu(norm("norm2")(x)))


class DenseBlock(nn.Module):
    """Layers that each see the channels of the block's input and of all layers before them."""

    depth: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h w k"]:
        for number in range(1, self.depth + 1):
            layer = DenseLayer(self.dtype, self.axis_name, name=f"denselayer{number}")
            x = jnp.concatenate([x, layer(x, train)], -1)
        return x


class Transition(nn.Module):
    """BatchNorm-ReLU, 1×1 to half of the channels, mean of 2×2 cells.

    The mean comes before the convolution, which gives the same map with a quarter of its products.
    """

    stride: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], train: bool) -> Float[Array, "b u v i//2"]:
        norm, conv = _tools(train, self.dtype, self.axis_name)
        features = x.shape[-1] // 2
        x = nn.relu(norm("norm")(x))
        return conv("conv", features, 1)(average_pool(x) if self.stride == 2 else x)


class DenseNet(nn.Module):
    """DenseNet-121 up to the ReLU after its last BatchNorm, with 1024 channels.

    part: 'early' stops at the 1024 channels of the third block; 'last' starts from them.
    output_stride: with 16 the last transition computes no means of 2×2 cells.
    """

    output_stride: int = 32
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float32[Array, "b h w i"], train: bool, part: EncoderPart = "whole"
    ) -> Float32[Array, "b u v k"]:
        norm, _ = _tools(train, self.dtype, self.axis_name)
        x = images.astype(self.dtype)
        if part != "last":
            x = Conv(64, 7, 2, 3, self.dtype, KAIMING_FAN_IN, name="conv0")(x)
            x = max_pool(nn.relu(norm("norm0")(x)))
            x = self._block(1, x, train)
            for number in (2, 3):
                x = self._block(number, self._transition(number - 1, 2, x, train), train)
        if part != "early":
            x = self._transition(3, 1 if self.output_stride == 16 else 2, x, train)
            x = nn.relu(norm("norm5")(self._block(4, x, train)))
        return x.astype(jnp.float32)

    def _block(
        self, number: int, x: Float[Array, "b h w i"], train: bool
    ) -> Float[Array, "b h w k"]:
        depth = _LAYERS_OF_BLOCK[number - 1]
        block = DenseBlock(depth, self.dtype, self.axis_name, name=f"denseblock{number}")
        return block(x, train)

    def _transition(
        self, number: int, stride: int, x: Float[Array, "b h w i"], train: bool
    ) -> Float[Array, "b u v k"]:
        name = f"transition{number}"
        return Transition(stride, self.dtype, self.axis_name, name=name)(x, train)


def published_layer(modules: Sequence[str]) -> str:
    """('denseblock1', 'denselayer2', 'conv1') → 'denseblock1.denselayer2.conv1'; files say 'features.' before it."""
    return ".".join(modules)
