"""KACL as a PyTorch user would write it: ResNet-18, focal loss and NT-Xent, Grad-CAM at the forward's own map, and
pyradiomics in the loop, synchronously. benchmarks.vs_torch compares with it; the package does not depend on PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """torchvision's BasicBlock, with the same parameter names."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if before != width:
            shortcut = nn.Conv2d(before, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet18(nn.Module):
    """torchvision's ResNet-18 without its classifier: [b 3 h w] → [b 512 u v]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = 64
        for stage, width in enumerate((64, 128, 256, 512), 1):
            blocks = BasicBlock(before, width, 1 if stage == 1 else 2), BasicBlock(width, width, 1)
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            before = width

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x


def projection_head(width: int, features: int = 128) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, features))


class TorchKACL(nn.Module):
    """Both networks and their heads, with the sizes of kacl_jax.models.KACL."""

    def __init__(self, findings: int, features: int) -> None:
        super().__init__()
        self.encoder = ResNet18()
        self.classifier = nn.Linear(512, findings)
        self.image_head = projection_head(512)
        layers: list[nn.Module] = []
        for before in (features, 128):
            layers += [nn.Linear(before, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()]
        self.radiomics_encoder = nn.Sequential(*layers)
        self.radiomics_head = projection_head(128)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def feature_map(self, images: Tensor) -> Tensor:
        """uint8 [b 1 h w] → [b 512 u v]."""
        x = (images.float() / 255 - self.mean) / self.std
        return self.encoder(x.contiguous(memory_format=torch.channels_last))

    def classify(self, feature_map: Tensor) -> Tensor:
        return self.classifier(feature_map.mean((2, 3)))

    def projections(self, feature_map: Tensor, radiomics: Tensor) -> tuple[Tensor, Tensor]:
        z_image = self.image_head(feature_map.mean((2, 3)))
        z_radiomics = self.radiomics_head(self.radiomics_encoder(radiomics))
        return F.normalize(z_image), F.normalize(z_radiomics)


def focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss, summed over findings, averaged over images."""
    p = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    p_t = p * labels + (1 - p) * (1 - labels)
    alpha_t = alpha * labels + (1 - alpha) * (1 - labels)
    return (alpha_t * (1 - p_t) ** gamma * entropy).sum(1).mean()


def nt_xent(
    z_image: Tensor, z_radiomics: Tensor, patient_id: Tensor, temperature: float = 0.5
) -> Tensor:
    """NT-Xent with all 2b views as anchors; other images of the anchor's patient are no negatives."""
    b = len(z_image)
    z = torch.cat([z_image, z_radiomics]).float()
    similarity = z @ z.T / temperature
    index = torch.arange(2 * b, device=z.device)
    positive = index.roll(b)
    patient = patient_id.repeat(2)
    excluded = patient[:, None] == patient
    excluded[index, positive] = False
    excluded[index, index] = True
    return F.cross_entropy(similarity.masked_fill(excluded, -torch.inf), positive)


def grad_cam(feature_map: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """[b u v] of the positive finding with the highest logit (without one, of the highest), through the head only."""
    candidates = torch.where((labels > 0).any(1, keepdim=True), labels > 0, True)
    finding = torch.where(candidates, logits, -torch.inf).argmax(1, keepdim=True)
    score = logits.gather(1, finding).sum()
    (gradient,) = torch.autograd.grad(score, feature_map, retain_graph=True)
    return (gradient.sum((2, 3), keepdim=True) * feature_map).sum(1).detach()


def region(cam: np.ndarray, size: int, threshold: float = 0.5) -> np.ndarray:
    """float [u v] → bool [size size]: ReLU, min-max scaling, threshold, the component with the peak; never empty."""
    heat = np.maximum(cv2.resize(cam, (size, size), interpolation=cv2.INTER_LINEAR), 0)
    whole = np.zeros((size, size), bool)
    whole[1:-1, 1:-1] = True
    if heat.max() <= heat.min():
        return whole
    labels, _ = ndimage.label((heat - heat.min()) / (heat.max() - heat.min()) > threshold)
    mask = labels == labels.flat[heat.argmax()]
    sides = mask.any(0).sum(), mask.any(1).sum()
    return mask if min(sides) >= 3 else whole


def documented_extractor() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """pyradiomics as its documentation shows it: uint8 [h w], bool [h w] → float32 [f]."""
    import logging

    import SimpleITK as sitk
    from radiomics import featureextractor

    logging.getLogger("radiomics").setLevel(logging.ERROR)
    extractor = featureextractor.RadiomicsFeatureExtractor(binWidth=25)
    extractor.disableAllFeatures()
    for family in ("firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm", "shape2D"):
        extractor.enableFeatureClassByName(family)

    def extract(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        image = sitk.GetImageFromArray(pixels.astype(np.float32))
        features = extractor.execute(image, sitk.GetImageFromArray(mask.astype(np.uint8)))
        values = [float(np.real(v)) for k, v in features.items() if k.startswith("original_")]
        return np.nan_to_num(np.array(values, np.float32))

    return extract


def steps(
    net: TorchKACL, optimizer: Any, *, amp: bool, compiled: bool
) -> dict[str, Callable[[dict[str, Tensor], Tensor], Any]]:
    """'model', 'supervised' and 'KACL': (batch, z-scored radiomics [b f]) → (loss, CAM or None)."""
    feature_map = torch.compile(net.feature_map) if compiled else net.feature_map

    def run(batch: dict[str, Tensor], radiomics: Tensor, *, contrastive: bool, update: bool) -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(batch["image"].device.type, torch.bfloat16, enabled=amp):
            a = feature_map(batch["image"]).float()
        logits = net.classify(a)
        loss, cam = focal_loss(logits, batch["labels"]), None
        if contrastive:
            cam = grad_cam(a, logits, batch["labels"])
            z = net.projections(a, radiomics)
            loss = 0.8 * loss + 0.2 * nt_xent(*z, batch["patient_id"])
        loss.backward()
        if update:
            optimizer.step()
        return loss.detach(), cam

    return {
        "model": lambda b, r: run(b, r, contrastive=False, update=False),
        "supervised": lambda b, r: run(b, r, contrastive=False, update=True),
        "KACL": lambda b, r: run(b, r, contrastive=True, update=True),
    }


def synchronous_step(
    net: TorchKACL,
    optimizer: Any,
    batch: dict[str, Tensor],
    pixels: np.ndarray,
    extract: Callable[[np.ndarray, np.ndarray], np.ndarray],
    scaled: Callable[[np.ndarray], np.ndarray],
    *,
    amp: bool,
) -> float:
    """The paper's loop: forward, Grad-CAM, regions, pyradiomics, losses, update, one after the other.

    pixels: uint8 [b s s], what pyradiomics measures.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch["image"].device.type, torch.bfloat16, enabled=amp):
        a = net.feature_map(batch["image"]).float()
    logits = net.classify(a)
    cams = grad_cam(a, logits, batch["labels"]).cpu().numpy()
    rows = [
        extract(image, region(cam, image.shape[0])) for image, cam in zip(pixels, cams, strict=True)
    ]
    radiomics = torch.from_numpy(scaled(np.stack(rows))).to(a.device)
    z = net.projections(a, radiomics)
    loss = 0.8 * focal_loss(logits, batch["labels"]) + 0.2 * nt_xent(*z, batch["patient_id"])
    loss.backward()
    optimizer.step()
    return loss.item()
