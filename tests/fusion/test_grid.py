"""The cells of the grid, and the cells that are not measured."""

from __future__ import annotations

import numpy as np

from kacl_jax.fusion import grid
from kacl_jax.images.resizing import shrink
from kacl_jax.radiomics import FEATURE_NAMES


def test_the_cells_cover_the_frame_once() -> None:
    pixels = np.arange(200 * 100, dtype=np.int64).reshape(200, 100)
    cells = grid.cut_cells(pixels, 4)
    assert len(cells) == 16
    rows = [np.concatenate(cells[4 * i : 4 * i + 4], axis=1) for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(rows), pixels[10:186, 5:95])


def test_a_cell_without_texture_is_missing() -> None:
    flat = np.zeros((8, 8), np.uint8)
    assert grid.why_missing(flat) == grid.FEW_LEVELS
    flat[0, 0] = 9
    assert grid.why_missing(flat) == grid.FEW_LEVELS
    flat[0, 1] = 5
    assert not grid.why_missing(flat)
    empty = grid.cut_cells(np.zeros((3, 2), np.uint8), 4)
    assert grid.NO_PIXELS in map(grid.why_missing, empty)


def test_a_missing_cell_stays_missing() -> None:
    features = np.full((2, 4, len(FEATURE_NAMES)), -3.0, np.float32)
    features[1, 2] = np.nan
    columns = grid.as_columns(features)
    assert grid.count_missing(columns).tolist() == [0, 1]
    assert set(np.unique(columns[0])) == {np.float32(-3), np.float32(-np.log1p(3))}


def test_a_picture_only_shrinks_and_keeps_its_shape() -> None:
    assert shrink(np.zeros((600, 1200), np.uint8), 512).shape == (256, 512)
    small = np.zeros((30, 20), np.uint8)
    assert shrink(small, 512) is small
