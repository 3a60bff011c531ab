"""The archive that carries pyradiomics' values to a machine without it, and the comparison there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

from benchmarks import bare, reference_regions
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.radiomics.host import Extractor

SIZE = 32


class Counts(NamedTuple):
    pixels: np.ndarray
    rows: np.ndarray


class Device:
    """Plays the compiled program: pyradiomics' values in float32, with one that may be wrong."""

    wrong: tuple[str, float] = ("", 0.0)
    more_pixels = 0

    def measure(self, images: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, Counts]:
        extractor = Extractor(25.0)
        rows = [extractor.extract(*pair) for pair in zip(images, masks, strict=True)]
        values = np.stack(rows).astype(np.float32)
        name, share = self.wrong
        if name:
            values[3, FEATURE_NAMES.index(name)] *= 1 + share
        pixels = masks.sum((1, 2))
        pixels[3] += self.more_pixels
        return values, Counts(pixels, masks.sum(2))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(reference_regions, "compiled", lambda *_: device.measure)
    return device


def test_a_value_or_a_count_that_differs_is_named(device: Device, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, image in enumerate(bare.xrays(2 * SIZE, 2)):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
    archive = tmp_path / "reference.npz"
    reference_regions.make(tmp_path, SIZE, 7, archive)
    reference = reference_regions.read(archive)
    assert reference.images.shape == reference.masks.shape == (7, SIZE, SIZE)

    def compared() -> dict[str, Any]:
        return reference_regions.compare(reference, "scatter")

    same = compared()
    assert same["equal"]
    assert same["regions"] == 7
    assert same["largest_share_of_tolerance"] < 0.1

    name = "original_glcm_Contrast"
    device.wrong = name, 5e-6
    assert compared()["equal"]
    device.wrong = name, 5e-5
    far = compared()
    assert not far["equal"]
    assert far["of_feature"] == name
    assert far["regions_beyond_tolerance"] == {name: 1}
    device.wrong = name, np.nan
    assert compared()["regions_beyond_tolerance"] == {name: 1}

    device.wrong, device.more_pixels = ("", 0.0), 1
    other = compared()
    assert not other["equal"]
    assert other["regions_beyond_tolerance"] == {}
    assert other["regions_with_other_counts"] == {"counts.pixels": 1}
