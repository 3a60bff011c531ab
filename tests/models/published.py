"""Names and shapes of published weight files, derived from the networks' naming schemes and not from pretrained.py."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from golden import seeded

from benchmarks.fuzz.torch_files import Module


@cache
def seeded_weights(encoder: str, channels: int = 3) -> Mapping[str, np.ndarray]:
    """A value for each tensor, from a seed made of its name. channels: of the images."""
    layer_shapes = published_shapes(encoder)
    stem = next(name for name, shape in layer_shapes.items() if shape[1:2] == (3,))
    out, _, *kernel = layer_shapes[stem]
    return seeded.weights(layer_shapes | {stem: (out, channels, *kernel)})


def as_module(weights: Mapping[str, np.ndarray], class_name: str) -> Module:
    """The whole module of a state dict, as torch.save(model) keeps it. class_name: of the outermost one."""
    leaves: dict[str, np.ndarray] = {}
    inside: dict[str, dict[str, np.ndarray]] = {}
    for name, value in weights.items():
        first, dot, rest = name.partition(".")
        if dot:
            inside.setdefault(first, {})[rest] = value
        else:
            leaves[first] = value
    is_buffer = {name: name.startswith(("running_", "num_batches")) for name in leaves}
    return Module(
        class_name,
        {name: value for name, value in leaves.items() if not is_buffer[name]},
        {name: value for name, value in leaves.items() if is_buffer[name]},
        {
            name: as_module(part, "torch.nn.modules.container.Sequential")
            for name, part in inside.items()
        },
    )


def published_shapes(encoder: str) -> dict[str, tuple[int, ...]]:
    """torchvision's, for images of three channels."""
    return densenet_shapes() if encoder == "densenet121" else resnet_shapes(encoder)


def densenet_shapes() -> dict[str, tuple[int, ...]]:
    layer_shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inside: int, kernel: int) -> None:
        layer_shapes[f"features.{name}.weight"] = (out, inside, kernel, kernel)

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            layer_shapes[f"features.{name}.{leaf}"] = (channels,)

    conv("conv0", 64, 3, 7)
    norm("norm0", 64)
    channels = 64
    for block, depth in enumerate((6, 12, 24, 16), 1):
        for number in range(1, depth + 1):
            at = f"denseblock{block}.denselayer{number}"
            norm(f"{at}.norm1", channels)
            conv(f"{at}.conv1", 128, channels, 1)
            norm(f"{at}.norm2", 128)
            conv(f"{at}.conv2", 32, 128, 3)
            channels += 32
        if block < 4:
            norm(f"transition{block}.norm", channels)
            conv(f"transition{block}.conv", channels // 2, channels, 1)
            channels //= 2
    norm("norm5", channels)
    return layer_shapes | {"classifier.weight": (1000, channels), "classifier.bias": (1000,)}


def resnet_shapes(encoder: str) -> dict[str, tuple[int, ...]]:
    counts, bottleneck = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}[
        encoder
    ]
    layer_shapes: dict[str, tuple[int, ...]] = {}

    def conv_bn(conv: str, bn: str, out: int, inside: int, kernel: int) -> None:
        layer_shapes[f"{conv}.weight"] = (out, inside, kernel, kernel)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            layer_shapes[f"{bn}.{leaf}"] = (out,)

    conv_bn("conv1", "bn1", 64, 3, 7)
    inside = 64
    for stage, blocks in enumerate(counts):
        width = 64 * 2**stage
        out = width * (4 if bottleneck else 1)
        for block in range(blocks):
            at = f"layer{stage + 1}.{block}"
            plan = [(width, 1), (width, 3), (out, 1)] if bottleneck else [(width, 3), (out, 3)]
            if inside != out:
                conv_bn(f"{at}.downsample.0", f"{at}.downsample.1", out, inside, 1)
            for number, (features, kernel) in enumerate(plan, 1):
                conv_bn(f"{at}.conv{number}", f"{at}.bn{number}", features, inside, kernel)
                inside = features
    layer_shapes |= {"fc.weight": (1000, inside), "fc.bias": (1000,)}
    return layer_shapes
