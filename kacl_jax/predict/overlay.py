"""An X-ray under its heat map, with the marked region and its box, as one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from kacl_jax.predict.prediction import Prediction


def draw(prediction: Prediction, finding: str) -> Image.Image:
    raise NotImplementedError
