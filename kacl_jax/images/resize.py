"""The one named resize: training, evaluation, prepared data and radiomics see the same pixels."""

from __future__ import annotations

import cv2
import numpy as np

# Part of the radiomics extractor's key: change it whenever `resize` can give other pixels.
RESIZE_NAME = "cv2-area-shrink-linear-grow-1"


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h w] → uint8 [size size], the aspect ratio not kept (boxes are fractions of a side).

    The only resize in the package: area average when neither side grows, else bilinear.
    """
    if image.shape == (size, size):
        return image
    shrinks = size <= min(image.shape)
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=how)
