"""What a figure of localization stands beside: what scores without an image, and what a map's grid could score."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from kacl_jax.evaluation.metrics.boxes import checked, iou

PRIOR_GRID = 256
RANDOM_BLOB = (
    1 / 7
)  # σ of a random map's smoothing in sides of the image: a cell of 224 px at stride 32


def prior_box(boxes: np.ndarray) -> np.ndarray:
    """The class-mean box of float [m 4] boxes, m ≥ 1: float64 [4]. Looks at no image."""
    return checked(boxes).mean(axis=0)


def prior_map(boxes: np.ndarray, grid: int = PRIOR_GRID) -> np.ndarray:
    """Box of the class heat map of float [m 4] boxes, m ≥ 1: float64 [4]. Looks at no image.

    The heat map is the mean of the boxes drawn on a grid × grid raster (a cell belongs to a box
    that holds its centre); the box is that of the 4-connected component, at half the maximum or
    more, of the first maximum in row order.
    """
    heat = _heat(boxes, grid)
    labels, _ = ndimage.label(2 * heat >= heat.max())
    where = ndimage.find_objects(labels)[labels.flat[heat.argmax()] - 1]
    return np.array([where[1].start, where[0].start, where[1].stop, where[0].stop]) / grid


def prior_peak(boxes: np.ndarray, grid: int = PRIOR_GRID) -> np.ndarray:
    """The peak of the heat map of `prior_map`: float64 [2] (x, y), the centre of its first highest cell."""
    heat = _heat(boxes, grid)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    return (np.array([column, row]) + 0.5) / grid


def _heat(boxes: np.ndarray, grid: int) -> np.ndarray:
    """How many boxes hold each cell's centre: float64 [grid grid], not all 0."""
    centre = (np.arange(grid) + 0.5) / grid
    boxes = checked(boxes)
    columns = (boxes[:, 0, None] <= centre) & (centre < boxes[:, 2, None])
    rows = (boxes[:, 1, None] <= centre) & (centre < boxes[:, 3, None])
    heat = rows.T.astype(np.float64) @ columns.astype(np.float64)
    if heat.max() == 0:
        raise ValueError(f"no box covers the centre of a cell of the {grid} × {grid} raster")
    return heat


def random_map(u: int, v: int, seed: tuple[int, ...]) -> np.ndarray:
    """A smooth map that knows nothing: float64 [u v], the same for the same seed.

    White Gaussian noise, smoothed by a Gaussian of σ = `RANDOM_BLOB` sides as on a torus, so that no place of the
    image is favoured and the blobs have one size whatever the grid.
    """
    noise = np.random.default_rng(seed).normal(size=(u, v))
    return ndimage.gaussian_filter(noise, (RANDOM_BLOB * u, RANDOM_BLOB * v), mode="wrap")


def grid_ceiling(boxes: np.ndarray, u: int, v: int) -> np.ndarray:
    """IoU of each truth box with its best box made of whole cells of a u × v grid.

    Args: boxes float [m 4]; u rows, v columns. Returns float64 [m].
    With the other three edges fixed, IoU rises until an edge meets the truth's and falls after, so
    each edge of the best box is a grid line next to the truth's edge: 16 candidates.
    """
    boxes = checked(boxes)
    cells = np.array([v, u, v, u], np.float64)
    best = np.zeros(len(boxes))
    for corner in range(16):
        up = np.array([corner >> edge & 1 for edge in range(4)])
        edges = np.clip(np.floor(boxes * cells) + up, 0, cells)
        whole = (edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])
        best[whole] = np.maximum(best[whole], iou(edges[whole] / cells, boxes[whole]))
    return best


def grid_ceiling_iobb(boxes: np.ndarray, u: int, v: int) -> np.ndarray:
    """As `grid_ceiling` for IoBB. A box's IoBB is the mean of its cells', so one cell is best."""
    boxes = checked(boxes)

    def covered(low: np.ndarray, high: np.ndarray, cells: int) -> np.ndarray:
        line = np.arange(cells) / cells
        inside = np.minimum(high[:, None], line + 1 / cells) - np.maximum(low[:, None], line)
        return np.clip(inside, 0, None).max(axis=1) * cells

    share = covered(boxes[:, 0], boxes[:, 2], v) * covered(boxes[:, 1], boxes[:, 3], u)
    return np.minimum(share, 1.0)
