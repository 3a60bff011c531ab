"""Random maps know nothing, and the heat map's peak is where most boxes overlap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from test_metrics import random_boxes

from kacl_jax.evaluation import metrics


def test_a_random_map_is_its_seeds_alone() -> None:
    one = metrics.random_map(7, 9, (0, 3, 1))
    np.testing.assert_array_equal(one, metrics.random_map(7, 9, (0, 3, 1)))
    assert one.shape == (7, 9)
    for other in ((1, 3, 1), (0, 4, 1), (0, 3, 2)):
        assert abs(np.corrcoef(one.ravel(), metrics.random_map(7, 9, other).ravel())[0, 1]) < 0.9


def test_a_random_map_favours_no_place() -> None:
    peaks = [metrics.random_map(5, 4, (i,)).argmax() for i in range(4000)]
    assert stats.chisquare(np.bincount(peaks, minlength=20)).pvalue > 1e-3


@pytest.mark.parametrize("cells", [7, 14, 28])
def test_a_random_map_is_smooth_and_its_blobs_have_one_size(cells: int) -> None:
    """White noise under a Gaussian of width σ has the autocorrelation exp(−d² / 4σ²)."""
    maps = np.array([metrics.random_map(cells, cells, (i,)) for i in range(400)])
    apart = cells // 7  # σ
    shifted = np.roll(maps, apart, axis=2)
    assert (maps * shifted).mean() / (maps**2).mean() == pytest.approx(np.exp(-1 / 4), abs=0.03)


def test_the_prior_peak_is_the_first_point_of_most_boxes() -> None:
    boxes = random_boxes(1, 12)
    covered = np.array([
        [metrics.point_in_box(np.array([x + 0.5, y + 0.5]) / 32, boxes).sum() for x in range(32)]
        for y in range(32)
    ])  # fmt: skip
    y, x = np.argwhere(covered == covered.max())[0]
    assert metrics.prior_peak(boxes, grid=32).tolist() == [(x + 0.5) / 32, (y + 0.5) / 32]


def test_inside_is_half_open_and_nothing_lies_nowhere() -> None:
    box = np.array([0.25, 0.5, 0.5, 0.75])
    points = [(0.25, 0.5), (0.5, 0.5), (0.25, 0.75), (0.2, 0.6), (0.3, 0.4), (np.nan, np.nan)]
    assert metrics.point_in_box(np.array(points), box).tolist() == [True] + 5 * [False]
