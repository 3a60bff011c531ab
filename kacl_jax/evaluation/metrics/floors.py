"""Bounds for localization: boxes and maps made without an image, and the best overlap that a map's grid allows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64
from scipy import ndimage

from kacl_jax.evaluation.metrics.boxes import iou, validate_boxes

PRIOR_GRID = 256
RANDOM_BLOB = (
    1 / 7
)  # σ of a random map's smoothing as a fraction of the side: one cell of a 224 px image at stride 32


def prior_box(boxes: Float[np.ndarray, "m 4"]) -> Float64[np.ndarray, "4"]:
    """The mean box of a class, from m ≥ 1 boxes. Uses no image."""
    return validate_boxes(boxes).mean(axis=0)


def prior_map(boxes: Float[np.ndarray, "m 4"], grid: int = PRIOR_GRID) -> Float64[np.ndarray, "4"]:
    """Box of the heat map of a class, from m ≥ 1 boxes. Uses no image.

    The heat map counts for each cell of a grid × grid raster the boxes that contain its centre. The
    result is the bounding box of a 4-connected component of the cells with half the maximum or
    more: the component that contains the first maximum in row order.
    """
    heat = _heat_map(boxes, grid)
    labels, _ = ndimage.label(2 * heat >= heat.max())
    window = ndimage.find_objects(labels)[labels.flat[heat.argmax()] - 1]
    return np.array([window[1].start, window[0].start, window[1].stop, window[0].stop]) / grid


def prior_peak(boxes: Float[np.ndarray, "m 4"], grid: int = PRIOR_GRID) -> Float64[np.ndarray, "2"]:
    """The peak of the heat map of `prior_map`: (x, y), the centre of its first highest cell."""
    heat = _heat_map(boxes, grid)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    return (np.array([column, row]) + 0.5) / grid


def _heat_map(boxes: Float[np.ndarray, "m 4"], grid: int) -> Float64[np.ndarray, "{grid} {grid}"]:
    """How many boxes contain each cell's centre. Raises ValueError where all are 0."""
    centre = (np.arange(grid) + 0.5) / grid
    boxes = validate_boxes(boxes)
    columns = (boxes[:, 0, None] <= centre) & (centre < boxes[:, 2, None])
    rows = (boxes[:, 1, None] <= centre) & (centre < boxes[:, 3, None])
    heat = rows.T.astype(np.float64) @ columns.astype(np.float64)
    if heat.max() == 0:
        raise ValueError(f"no box covers the centre of a cell of the {grid} × {grid} raster")
    return heat


def random_map(u: int, v: int, seed: tuple[int, ...]) -> Float64[np.ndarray, "{u} {v}"]:
    """A smooth random map without information on the image, the same for the same seed.

    White Gaussian noise, smoothed by a Gaussian of σ = `RANDOM_BLOB` sides with periodic borders. All positions are
    equally likely to hold the peak, and the blobs have the same size on every grid.
    """
    noise = np.random.default_rng(seed).normal(size=(u, v))
    return ndimage.gaussian_filter(noise, (RANDOM_BLOB * u, RANDOM_BLOB * v), mode="wrap")


def grid_ceiling(boxes: Float[np.ndarray, "m 4"], u: int, v: int) -> Float64[np.ndarray, "m"]:
    """IoU of each truth box with its best box made of whole cells of a grid of u rows and v columns.

    With the other three edges fixed, IoU rises until an edge reaches the truth's edge and falls
    afterwards. So each edge of the best box is one of the two grid lines next to the truth's edge:
    16 candidates.
    """
    boxes = validate_boxes(boxes)
    cells = np.array([v, u, v, u], np.float64)
    best = np.zeros(len(boxes))
    for candidate in range(16):
        step = np.array([candidate >> edge & 1 for edge in range(4)])
        edges = np.clip(np.floor(boxes * cells) + step, 0, cells)
        not_empty = (edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])
        best[not_empty] = np.maximum(
            best[not_empty], iou(edges[not_empty] / cells, boxes[not_empty])
        )
    return best


def grid_ceiling_iobb(boxes: Float[np.ndarray, "m 4"], u: int, v: int) -> Float64[np.ndarray, "m"]:
    """As `grid_ceiling` for IoBB. A box's IoBB is the mean of the IoBB of its cells, so the best box is one cell."""
    boxes = validate_boxes(boxes)

    def best_cell_share(
        low: Float64[np.ndarray, "m"], high: Float64[np.ndarray, "m"], cells: int
    ) -> Float64[np.ndarray, "m"]:
        cell_start = np.arange(cells) / cells
        overlap = np.minimum(high[:, None], cell_start + 1 / cells) - np.maximum(
            low[:, None], cell_start
        )
        return np.clip(overlap, 0, None).max(axis=1) * cells

    share = best_cell_share(boxes[:, 0], boxes[:, 2], v) * best_cell_share(
        boxes[:, 1], boxes[:, 3], u
    )
    return np.minimum(share, 1.0)
