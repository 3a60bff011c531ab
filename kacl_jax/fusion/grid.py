"""The cells of a fixed grid over an X-ray, whose radiomic features the fusion uses."""

from __future__ import annotations

import numpy as np

from kacl_jax.radiomics import FEATURE_NAMES, LOG_COLUMNS

LONGEST_SIDE = 512  # px of the picture that is measured
# The grid covers this part of the picture, as fractions (x0, y0, x1, y1): not its border, where letters and collimator
# edges are.
FRAME = (0.05, 0.05, 0.95, 0.93)
MIN_LEVELS = 3  # grey values that a cell needs
FEW_LEVELS = f"fewer than {MIN_LEVELS} grey values"
NO_PIXELS = "no pixels"


def cut_cells(pixels: np.ndarray, grid: int) -> list[np.ndarray]:
    """The grid² cells of a picture, row by row from the top left: uint8 [h' w'], empty where it is too small.

    Args:
      pixels: uint8 [h w].
      grid: cells along one side.
    """
    height, width = pixels.shape
    x0, y0, x1, y1 = FRAME
    rows = np.round(np.linspace(y0, y1, grid + 1) * height).astype(int)
    columns = np.round(np.linspace(x0, x1, grid + 1) * width).astype(int)
    return [
        pixels[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        for i in range(grid)
        for j in range(grid)
    ]


def why_missing(cell: np.ndarray) -> str:
    """Why a cell, uint8 [h' w'], is not measured, or ''.

    A cell with hardly any grey value has no texture: it is padding or a label.
    """
    if not cell.size:
        return NO_PIXELS
    n_levels = np.count_nonzero(np.bincount(cell.ravel(), minlength=256))
    return FEW_LEVELS if n_levels < MIN_LEVELS else ""


def as_columns(features: np.ndarray) -> np.ndarray:
    """float32 [n p]: signed log1p of the scale-like features, as in training, and all cells in one row.

    features: float32 [n g² f], NaN in every feature of a missing cell, which stays NaN.
    """
    with np.errstate(invalid="ignore"):
        logs = np.sign(features) * np.log1p(np.abs(features))
    compressed = np.where(LOG_COLUMNS, logs, features).astype(np.float32)
    return compressed.reshape(len(features), -1)


def count_missing(columns: np.ndarray) -> np.ndarray:
    """How many cells of each image are missing: int [n], from `as_columns`."""
    cells = np.isnan(columns).reshape(len(columns), -1, len(FEATURE_NAMES))
    missing: np.ndarray = cells.any(2).sum(1)
    return missing
