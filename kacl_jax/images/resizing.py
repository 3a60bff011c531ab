"""The only resizes of the package, so that training, evaluation, prepared data and radiomics see the same pixels."""

from __future__ import annotations

import cv2
import numpy as np

# The radiomics extractor's key contains this name: change it whenever `resize` or `shrink` can give other pixels.
RESIZE_NAME = "cv2-area-shrink-linear-grow-1"


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h w] → uint8 [size size], without keeping the aspect ratio (boxes are fractions of a side).

    Takes the area average if neither side grows, else interpolates bilinearly.
    """
    if image.shape == (size, size):
        return image
    shrinks = size <= min(image.shape)
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=interpolation)


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """uint8 [h w] with its longer side at most `longest`, its aspect ratio kept. A smaller image stays as it is."""
    height, width = image.shape
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
