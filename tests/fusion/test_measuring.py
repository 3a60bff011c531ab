"""The grids of many images: measured once, remembered, and what cannot be measured is missing."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kacl_jax.feedback.feature_cache import FeatureCache
from kacl_jax.feedback.pool import RadiomicsPool
from kacl_jax.feedback.result import Result
from kacl_jax.fusion import grid, measuring
from kacl_jax.images.reader import BrokenImage
from kacl_jax.radiomics.host import Extractor


def test_a_grid_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [np.random.default_rng(i).integers(0, 255, (40, 48), np.uint8) for i in range(3)]
    pictures[1][:20, :24] = 7  # its first cells have one grey value

    def read(image: int) -> np.ndarray:
        if image == 2:
            raise BrokenImage("c.png", "is truncated")
        return pictures[image]

    with RadiomicsPool(1, bin_width=25.0, nice=19) as pool:
        memo = FeatureCache(tmp_path / "grid.sqlite", settings="s")

        def measure() -> measuring.Measured:
            results = measuring.measure(read, range(3), 2, pool, memo)
            return measuring.collect(results, 3, 2, lambda done, total: None)

        first = measure()
        assert os.getpriority(os.PRIO_PROCESS, pool.pids()[0]) == 19
        monkeypatch.setattr(pool, "submit", None)
        again = measure()
        memo.close()
    np.testing.assert_array_equal(first.features, again.features)
    assert first.longest == 48
    assert first.missing == {grid.FEW_LEVELS: 1, measuring.BROKEN: 4}
    assert np.isnan(first.features).all(2).tolist() == [
        [False] * 4,
        [True] + [False] * 3,
        [True] * 4,
    ]
    cell = grid.cut_cells(pictures[0], 2)[3]
    expected = Extractor(25.0).extract(cell, np.ones(cell.shape, bool))
    np.testing.assert_array_equal(first.features[0, 3], expected.astype(np.float32))


def test_workers_without_a_core_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """Training is over while none of the cells that were asked for has an answer."""

    class Starved:
        def submit(self, pixels: np.ndarray, mask: np.ndarray) -> Future[Result]:
            return Future()

    pictures = np.random.default_rng(0).integers(0, 255, (20, 40, 48), np.uint8)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    memo = FeatureCache(tmp_path / "grid.sqlite", settings="s")
    pool: Any = Starved()
    results = measuring.measure(
        lambda image: pictures[image], range(20), 2, pool, memo, is_stopped=stop.is_set
    )
    assert not list(results)
    memo.close()
