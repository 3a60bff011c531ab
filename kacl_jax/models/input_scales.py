"""The scales on which image encoders see grey levels. To add one, add it to `INPUT_SCALES`.

Weights expect the scale that they were trained with; each encoder in `encoders.ENCODERS` names its own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32

AUTO = "auto"


class InputScale(NamedTuple):
    """(x / 255 − mean) / std in each channel, x the grey level from 0 to 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, grey: Float32[Array, "*b h w"]) -> Float32[Array, "*b h w channels"]:
        """Grey levels 0–255 → the encoder's channels."""
        return (grey[..., None] / 255 - jnp.array(self.mean)) / jnp.array(self.std)


INPUT_SCALES = {
    # torchvision's models: mean and standard deviation of ImageNet's red, green and blue
    "imagenet": InputScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # TensorFlow's EfficientNet-Lite: (x − 127) / 128
    "lite": InputScale((127 / 255,) * 3, (128 / 255,) * 3),
    # x / 255
    "unit": InputScale((0.0,) * 3, (1.0,) * 3),
    # MoCo-CXR: mean and standard deviation of CheXpert (its aihc_utils/image_transform.py)
    "chexpert": InputScale((0.502,) * 3, (0.085585,) * 3),
    # One channel: the mean of ImageNet's three
    "grey": InputScale((0.449,), (0.226,)),
    # One channel of TorchXRayVision, −1024 … 1024: (2 · x / 255 − 1) · 1024 (its utils.normalize)
    "xrv": InputScale((0.5,), (1 / 2048,)),
}


def input_scale(name: str, *, own: str) -> InputScale:
    """The scale of that name; for auto the encoder's `own`."""
    return INPUT_SCALES[own if name == AUTO else name]
