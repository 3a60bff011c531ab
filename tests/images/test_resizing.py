"""The only resize."""

from __future__ import annotations

import numpy as np

from kacl_jax.images.resizing import resize


def test_resize_shrinks_by_area_and_grows_linearly() -> None:
    image = np.random.default_rng(3).integers(0, 256, (64, 96)).astype(np.uint8)
    blocks = image.astype(float).reshape(16, 4, 16, 6).mean((1, 3))
    assert np.abs(resize(image, 16) - blocks).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(resize(image[:, :64], 64), image[:, :64])
    ramp = np.tile(np.array([0, 100], np.uint8), (2, 1))
    np.testing.assert_array_equal(resize(ramp, 4), np.tile([0, 25, 75, 100], (4, 1)))
    assert resize(image, 80).shape == (80, 80)
