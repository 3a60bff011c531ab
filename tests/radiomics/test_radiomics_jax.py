"""The JAX extractor against pyradiomics: every feature, every count, whatever the region."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equal_values import Regions, assert_equal, both
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from radiomics import cMatrices

from kacl_jax.radiomics import FEATURE_NAMES, Extraction, extract, extraction, tiles
from kacl_jax.radiomics.counts import bins, by_numba, matrices, zones

# Some regions here have one or two grey levels on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.* have one or two grey levels")


def blob(random: np.random.Generator, size: int, smoothness: float) -> np.ndarray:
    """Like a thresholded CAM: one to several parts, often at the border."""
    field = cv2.GaussianBlur(random.normal(size=(size, size)), (0, 0), smoothness)
    return field > np.quantile(field, random.uniform(0.6, 0.97))


@functools.cache
def real_regions(root: Path) -> Regions:
    """520 regions of real X-rays: truth boxes and blobs."""
    random = np.random.default_rng(0)
    with (root / "BBox_List_2017.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    regions = []
    for place, (name, _, x, y, w, h, *_) in enumerate(rows[:: max(1, len(rows) // 345)]):
        pixels = np.asarray(Image.open(root / "images" / name).convert("L"))
        left, top, width, height = (int(float(v) / 2) for v in (x, y, w, h))
        mask = np.zeros(pixels.shape, bool)
        mask[top : top + height, left : left + width] = True
        regions.append((pixels, mask))
        if place % 2 == 0:
            side = int(random.integers(40, 220))
            corner = random.integers(0, 512 - side, 2)
            part = pixels[corner[0] :, corner[1] :][:side, :side]
            regions.append((part, blob(random, side, random.uniform(4, 30))))
    return regions


@functools.cache
def real_expected(root: Path) -> Extraction:
    images, masks = zip(*real_regions(root), strict=True)
    return extract(images, masks, dtype="float64")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equals_pyradiomics_on_real_regions(nih_root, dtype) -> None:
    images, masks = zip(*real_regions(nih_root), strict=True)
    assert len(images) >= 500
    actual = extract(images, masks, backend="jax", dtype=dtype)
    assert actual.features.dtype == np.dtype(dtype)
    assert actual.ready.all()
    assert_equal(actual, real_expected(nih_root), dtype)


def made_regions() -> Regions:
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (62, 62), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 5)
    smooth = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)

    def mask(*windows: tuple[slice, slice]) -> np.ndarray:
        made = np.zeros((62, 62), bool)
        for window in windows:
            made[window] = True
        return made

    parts = [np.s_[8 * k : 8 * k + 5, 3 * k : 3 * k + 9] for k in range(7)]
    checks = np.indices((62, 62)).sum(0) % 2 == 0
    square = mask(np.s_[5:30, 10:50])
    return [
        (noise, mask(np.s_[:, :])),
        (smooth, mask(np.s_[:, :])),
        (noise, mask(np.s_[5:7, 9:11])),
        (noise, mask(np.s_[5:8, 5:8])),
        (noise, mask(np.s_[5:6, 5:6], np.s_[6:7, 6:7])),
        (noise, mask(np.s_[5:6, 5:6], np.s_[50:51, 20:21])),
        # No two pixels on a line of one of the diagonal directions.
        (noise, mask(np.s_[5:6, 5:7], np.s_[6:7, 7:8])),
        (noise, mask(np.s_[5:6, 6:8], np.s_[6:7, 5:6])),
        (smooth, mask(*parts)),
        (smooth, mask(np.s_[0:20, 40:62])),
        (smooth, mask(np.s_[50:62, :], np.s_[:, 55:62])),
        (np.full((62, 62), 200, np.uint8), square),
        (np.full((62, 62), 201, np.uint8), mask(*parts)),
        (np.full((62, 62), 50, np.uint8), square),
        (np.zeros((62, 62), np.uint8), square),
        (np.where(smooth > 128, 200, 100).astype(np.uint8), square),
        (checks * np.uint8(180), mask(np.s_[:, :])),
        (noise, checks),
        (smooth, np.eye(62, dtype=bool)),
        (noise, random.random((62, 62)) < 0.1),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"bin_width": 25.0},
        {"bin_width": 5.0},
        {"bin_width": 7.3},
        {"bin_count": 32},
        {"bin_count": 7},
    ],
    ids=str,
)
def test_equals_pyradiomics_on_odd_regions(options) -> None:
    actual, expected = both(made_regions(), **options)
    assert_equal(actual, expected, "float64")


@pytest.mark.parametrize("bin_width", [25.0, 5.0])
def test_odd_regions_in_float32(bin_width) -> None:
    actual, expected = both(made_regions(), "float32", bin_width=bin_width)
    assert_equal(actual, expected, "float32")


def test_without_numba_the_values_are_the_same(monkeypatch) -> None:
    monkeypatch.setattr(extraction, "choose_counting_method", lambda: "scatter")
    actual, expected = both(made_regions())
    assert_equal(actual, expected, "float64")


def test_a_thin_region_keeps_its_width_in_float32() -> None:
    """The small eigenvalue of the pixels' covariance is 10⁻⁵ of the large one."""
    random = np.random.default_rng(6)
    pixels = random.integers(0, 256, (400, 400), dtype=np.uint8)
    flat, diagonal = np.zeros((2, 400, 400), bool)
    flat[7:9] = True
    x = np.arange(398)
    diagonal[x, x], diagonal[x, x + 1], diagonal[x + 1, x] = True, True, True
    actual, expected = both([(pixels, flat), (pixels, diagonal)], "float32")
    column = FEATURE_NAMES.index("original_shape2D_MinorAxisLength")
    assert (expected.features[:, column] < 3).all()
    assert_equal(actual, expected, "float32")


def test_float_images() -> None:
    random = np.random.default_rng(2)
    image = cv2.GaussianBlur(random.uniform(0, 255, (60, 60)), (0, 0), 2).astype(np.float32)
    regions = [(image, blob(random, 60, 8)) for _ in range(8)]
    actual, expected = both(regions, bin_width=3.0)
    assert_equal(actual, expected, "float64")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    grey=st.integers(1, 256),
    share=st.floats(0.05, 1),
)
def test_equals_pyradiomics_on_any_region(seed, height, width, grey, share) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, grey, (height, width), dtype=np.uint8)
    mask = random.random((height, width)) < share
    mask[random.integers(height), random.integers(width)] = True
    actual, expected = both([(pixels, mask)])
    assert_equal(actual, expected, "float64")


# ---- counts ---------------------------------------------------------------------------------------------------


def tile(pixels: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    level = bins.grey_levels(pixels, mask, bin_width=25.0, bin_count=None)
    corners = ((1, side - 1 - len(pixels)), (1, side - 1 - pixels.shape[1]))
    return np.pad(pixels, corners), np.pad(level, corners).astype(np.uint8)


@functools.cache
def counter(by: str) -> Callable[[np.ndarray, np.ndarray], matrices.Matrices]:
    method = by_numba.count_matrices
    if by != "numba":
        method = jax.jit(
            functools.partial(matrices.count_matrices, formulation=by), static_argnames="n_levels"
        )

    def count(pixels: np.ndarray, level: np.ndarray) -> matrices.Matrices:
        counts = method(pixels[None], level[None], n_levels=11)
        return jax.tree.map(lambda x: x[0], counts)

    return count


@pytest.mark.parametrize("by", ["scatter", "matmul", "compare", "numba"])
def test_counts_are_pyradiomics_own(by) -> None:
    count = counter(by)
    for pixels, mask in made_regions():
        actual = count(*tile(pixels, mask, 64))
        level = bins.grey_levels(pixels, mask, bin_width=25.0, bin_count=None).astype(int)
        highest, near = int(level.max()), np.array([1])

        def same(ours, theirs, highest=highest) -> None:
            np.testing.assert_array_equal(np.asarray(ours)[..., :highest, :], theirs)

        glcm = cMatrices.calculate_glcm(level, mask, near, highest, False, 0)[0][0]
        # Their directions are in another order; ours are sorted alike before the comparison.
        ours = np.asarray(actual.glcm)[:, :highest, :highest]
        theirs = (glcm + glcm.transpose(1, 0, 2)).transpose(2, 0, 1)
        assert sorted(map(bytes, ours.astype(int))) == sorted(map(bytes, theirs.astype(int)))
        runs = cMatrices.calculate_glrlm(level, mask, highest, max(mask.shape), False, 0)[0][0]
        theirs = np.pad(runs.transpose(2, 0, 1), ((0, 0), (0, 0), (0, 64 - max(mask.shape))))
        ours = np.where(
            np.asarray(actual.valid_directions)[:, None, None], np.asarray(actual.glrlm), 0
        )
        ours = ours[:, :highest]
        assert sorted(map(bytes, ours.astype(int))) == sorted(map(bytes, theirs.astype(int)))
        alike = cMatrices.calculate_gldm(level, mask, near, highest, 0, False, 0)[0]
        same(actual.gldm, alike[:, :9])  # theirs has room for neighbours in three dimensions
        assert alike[:, 9:].sum() == 0
        sizes = cMatrices.calculate_glszm(level, mask, highest, int(mask.sum()), False, 0)[0]
        ours = np.zeros((11, max(zones.SMALL_LIMIT, sizes.shape[1])), int)
        ours[:, : zones.SMALL_LIMIT] = actual.zones.small
        used = np.asarray(actual.zones.large_size) > 0
        np.add.at(ours, (actual.zones.large_level[used] - 1, actual.zones.large_size[used] - 1), 1)
        same(ours[:, : sizes.shape[1]], sizes)
        assert ours[:, sizes.shape[1] :].sum() == 0
        tones = cMatrices.calculate_ngtdm(level, mask, near, highest, False, 0)[0]
        np.testing.assert_array_equal(np.asarray(actual.level_counts)[:highest], tones[:, 0])
        difference = np.asarray(actual.tone_difference) / np.maximum(np.arange(9), 1)
        np.testing.assert_allclose(difference.sum(1)[:highest], tones[:, 1], rtol=1e-12)
        grey = np.bincount(pixels[mask], minlength=256)
        np.testing.assert_array_equal(actual.histogram, grey)


def test_all_ways_count_the_same_on_a_real_region(nih_root) -> None:
    pixels, mask = real_regions(nih_root)[1]
    top, left = (np.flatnonzero(mask.any(axis))[0] for axis in (1, 0))
    part = np.s_[top : top + 62, left : left + 62]
    made = tile(pixels[part], mask[part], 64)
    assert mask[part].sum() > 500
    reference, *others = (counter(by)(*made) for by in ("scatter", "matmul", "compare", "numba"))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, reference, other)


# ---- batches, limits ---------------------------------------------------------------------------------


def test_same_bits_every_run_and_same_values_in_any_batch() -> None:
    regions = made_regions()
    images, masks = [r[0] for r in regions], [r[1] for r in regions]
    first = extract(images, masks, backend="jax").features
    np.testing.assert_array_equal(first, extract(images, masks, backend="jax").features)
    alone = [extract([i], [m], backend="jax").features[0] for i, m in regions]
    np.testing.assert_allclose(alone, first, rtol=2e-6, atol=1e-6)
    padded = [np.pad(i, 40) for i in images], [np.pad(m, 40) for m in masks]
    np.testing.assert_array_equal(extract(*padded, backend="jax").features, first)


def test_a_larger_tile_changes_nothing_but_rounding(monkeypatch) -> None:
    images, masks = zip(*made_regions()[:9], strict=True)
    actual = []
    for smallest in (64, 160):
        monkeypatch.setitem(extraction.TILE_SIDES, "numba", (smallest,))
        actual.append(extract(images, masks, backend="jax").features)
    np.testing.assert_allclose(*actual, rtol=2e-5, atol=2e-6)


def test_over_a_limit_goes_to_the_host_and_is_told() -> None:
    random = np.random.default_rng(3)
    wide = random.integers(0, 100, (20, 600), dtype=np.uint8)
    many = random.integers(0, 256, (20, 20), dtype=np.uint8)
    images, masks = [wide, many], [np.ones(x.shape, bool) for x in (wide, many)]
    actual = extract(images, masks, backend="jax", bin_width=2.0, dtype="float64")
    np.testing.assert_array_equal(
        actual.features, extract(images, masks, bin_width=2.0, dtype="float64").features
    )
    assert actual.ready.all()
    assert actual.reasons == (
        "on the host: 20×600 px is over 542 px",
        "on the host: 128 grey levels are over 64",
    )


def test_on_the_device_a_region_is_cropped_and_binned_the_same() -> None:
    regions = made_regions()[:9]
    images, masks = (np.stack(x) for x in zip(*regions, strict=True))
    masks[8] = False
    masks[8, 3, 3:9] = True
    table = jnp.asarray(bins.level_table(25.0))
    crop = functools.partial(jax.jit, static_argnames=("side", "n_levels"))(tiles.crop_and_bin)
    pixels, level, problem = jax.device_get(crop(images, masks, table, side=64, n_levels=11))
    assert [tiles.PROBLEMS[k] for k in problem] == [""] * 8 + ["a line"]
    problems = []
    for row, (grey, mask) in enumerate(regions[:8]):
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        levels = bins.grey_levels(grey, mask, bin_width=25.0, bin_count=None)
        expected = np.zeros((2, 64, 64), np.uint8)
        height, width = mask[window].shape
        expected[:, 1 : 1 + height, 1 : 1 + width] = (grey * mask)[window], levels[window]
        np.testing.assert_array_equal(level[row], expected[1])
        np.testing.assert_array_equal(np.where(level[row] > 0, pixels[row], 0), expected[0])
        side = max(height, width) + 2
        problems.append(2 if side > 32 else 3 if levels.max() > 9 else 0)
    _, _, problem = jax.device_get(crop(images, masks, table, side=32, n_levels=9))
    assert problem.tolist() == [*problems, 1]
    assert set(problems) == {0, 2, 3}
