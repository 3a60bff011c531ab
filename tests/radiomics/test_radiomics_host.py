"""The tuned pyradiomics call gives the plain call's values, bit for bit, and refuses what it does."""

from __future__ import annotations

import csv
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image
from radiomics.featureextractor import RadiomicsFeatureExtractor

from kacl_jax.radiomics import FAMILIES, FEATURE_NAMES, LOG_COLUMNS
from kacl_jax.radiomics.host import Extractor, RadiomicsError, crop, settings_key

GOLDEN_IMAGE = "00013118_008.png"
GOLDEN_BOX = (225.0847, 547.0192, 86.7797, 79.1864)  # x y w h, 1024 frame


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor()


@pytest.fixture(scope="module")
def plain() -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """`execute` on the full image, nothing tuned."""
    extractor = RadiomicsFeatureExtractor(binWidth=25, force2D=False, additionalInfo=False)
    extractor.disableAllFeatures()
    for family in FAMILIES:
        extractor.enableFeatureClassByName(family)

    def extract(pixels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            actual = extractor.execute(
                SimpleITK.GetImageFromArray(pixels.astype(np.float32)),
                SimpleITK.GetImageFromArray(mask.astype(np.uint8)),
            )
        return {name: float(np.real(value)) for name, value in actual.items()}

    return extract


def _noise(size: int = 48) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (size, size), dtype=np.uint8)


def _mask(*windows: tuple[slice, slice], size: int = 48) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    for window in windows:
        mask[window] = True
    return mask


REGIONS = {
    "inside": (_noise(), _mask(np.s_[10:30, 5:40])),
    "touches two borders": (_noise(), _mask(np.s_[0:20, 30:48])),
    "fills the image": (_noise(), _mask(np.s_[:, :])),
    "two parts": (_noise(), _mask(np.s_[3:9, 3:9], np.s_[20:40, 30:45])),
    "three by three": (_noise(), _mask(np.s_[5:8, 5:8])),
    "two pixels, diagonal": (_noise(), _mask(np.s_[5:6, 5:6], np.s_[6:7, 6:7])),
    "constant": (np.full((48, 48), 200, np.uint8), _mask(np.s_[4:20, 4:30])),
    "constant at a bin edge": (np.full((48, 48), 50, np.uint8), _mask(np.s_[4:20, 4:30])),
    "black": (np.zeros((48, 48), np.uint8), _mask(np.s_[4:20, 4:30])),
    "two levels": (_noise() // 128 * 255, _mask(np.s_[4:40, 4:30])),
    "ragged": (_noise(), np.random.default_rng(3).random((48, 48)) < 0.4),
}


@pytest.mark.parametrize("name", REGIONS)
def test_equals_the_plain_call_bit_for_bit(name, extractor, plain) -> None:
    pixels, mask = REGIONS[name]
    expected = plain(pixels, mask)
    np.testing.assert_array_equal(
        extractor.extract(pixels, mask), [expected[n] for n in FEATURE_NAMES]
    )


def test_equals_the_plain_call_on_real_boxes(nih_root, extractor, plain) -> None:
    with (nih_root / "BBox_List_2017.csv").open() as file:
        rows = list(csv.reader(file))[1::50]
    assert len(rows) > 10
    for name, _, x, y, w, h, *_ in rows:
        pixels = np.asarray(Image.open(nih_root / "images" / name).convert("L"))
        mask = np.zeros(pixels.shape, bool)
        left, top, width, height = (int(float(v) / 2) for v in (x, y, w, h))
        mask[top : top + height, left : left + width] = True
        expected = plain(pixels, mask)
        np.testing.assert_array_equal(
            extractor.extract(pixels, mask), [expected[n] for n in FEATURE_NAMES]
        )


def test_another_bin_width_reaches_pyradiomics() -> None:
    pixels, mask = REGIONS["inside"]
    coarse, fine = Extractor(64.0).extract(pixels, mask), Extractor(8.0).extract(pixels, mask)
    entropy = FEATURE_NAMES.index("original_firstorder_Entropy")
    assert coarse[entropy] <= np.log2(4) < fine[entropy] <= np.log2(32)


def test_nan_pattern_is_pyradiomics_own(extractor) -> None:
    values = extractor.extract(*REGIONS["two pixels, diagonal"])
    missing = [n for n, v in zip(FEATURE_NAMES, values, strict=True) if np.isnan(v)]
    assert missing == ["original_firstorder_RobustMeanAbsoluteDeviation"]


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (np.s_[0:0, 0:0], "empty mask"),
        (np.s_[5:6, 7:8], "one pixel"),
        (np.s_[5:6, 7:30], "a line"),
        (np.s_[0:48, 47:48], "a line"),
    ],
)
def test_refuses_what_the_plain_call_refuses(window, reason, extractor, plain) -> None:
    mask = _mask(window)
    with pytest.raises(RadiomicsError) as caught:
        extractor.extract(_noise(), mask)
    assert caught.value.reason == reason
    with pytest.raises(ValueError, match=r"segmented|dimensions"):
        plain(_noise(), mask)


def test_wrong_types_are_refused(extractor) -> None:
    pixels, mask = REGIONS["inside"]
    for wrong in ((pixels / 255, mask), (pixels, mask.astype(np.uint8))):
        with pytest.raises(TypeError, match="uint8 or float32 pixels and a bool mask"):
            extractor.extract(*wrong)
    with pytest.raises(TypeError, match="one shape"):
        extractor.extract(pixels, mask[1:])


def test_nothing_outside_the_region_counts(extractor) -> None:
    pixels, mask = REGIONS["two parts"]
    expected = extractor.extract(pixels, mask)
    np.testing.assert_array_equal(extractor.extract(np.where(mask, pixels, 0), mask), expected)
    np.testing.assert_array_equal(extractor.extract(*crop(pixels, mask)), expected)
    shifted = np.roll(pixels, (5, 2), (0, 1)), np.roll(mask, (5, 2), (0, 1))
    np.testing.assert_array_equal(extractor.extract(*shifted), expected)
    inside = np.argwhere(mask)[0]
    changed = pixels.copy()
    changed[tuple(inside)] ^= 0xFF
    assert not np.array_equal(extractor.extract(changed, mask), expected)


def _golden_mask(side: int) -> np.ndarray:
    x, y, w, h = (round(v) for v in GOLDEN_BOX)
    mask = np.zeros((side, side), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def _named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, values.tolist(), strict=True))


def test_golden_shape_of_a_real_box(extractor) -> None:
    """Shape needs no grey levels: the published values of one NIH box in its 1024 frame."""
    actual = _named(extractor.extract(np.zeros((1024, 1024), np.uint8), _golden_mask(1024)))
    golden = {
        "PixelSurface": 6873,
        "MeshSurface": 6872.5,
        "Perimeter": 330.8284271,
        "MajorAxisLength": 100.4523104,
        "Elongation": 0.908033211,
        "MaximumDiameter": 116.846053,
        "Sphericity": 0.88829964,
    }
    for name, value in golden.items():
        assert actual[f"original_shape2D_{name}"] == pytest.approx(value, rel=1e-8), name


def test_golden_grey_levels_of_a_real_box(nih_original_root, extractor) -> None:
    """First-order values published for image/255; ours are in 0–255."""
    path = nih_original_root / "images" / GOLDEN_IMAGE
    if not path.is_file():
        pytest.skip(f"needs {path}, the published 1024 px image, which is not there")
    pixels = np.asarray(Image.open(path).convert("L"))
    actual = _named(extractor.extract(pixels, _golden_mask(1024)))
    golden = {"Mean": 0.261918911, "10Percentile": 0.192156866, "90Percentile": 0.349019617}
    golden |= {"Minimum": 0.125490203, "Maximum": 0.43921569}
    for name, value in golden.items():
        assert actual[f"original_firstorder_{name}"] / 255 == pytest.approx(value, rel=1e-6), name
    for name, value in {"Variance": 0.003362207, "Energy": 494.606671}.items():
        assert actual[f"original_firstorder_{name}"] / 255**2 == pytest.approx(value, rel=1e-6), (
            name
        )


def test_golden_grey_levels_at_half_size(nih_root, extractor) -> None:
    """The same image at 512 px (2×2 means): location holds closely, spread shrinks a little."""
    pixels = np.asarray(Image.open(nih_root / "images" / GOLDEN_IMAGE).convert("L"))
    x, y, w, h = (v / 2 for v in GOLDEN_BOX)
    mask = np.zeros(pixels.shape, bool)
    mask[round(y) : round(y + h), round(x) : round(x + w)] = True
    actual = _named(extractor.extract(pixels, mask))
    assert actual["original_firstorder_Mean"] / 255 == pytest.approx(0.261918911, abs=0.003)
    assert actual["original_firstorder_10Percentile"] / 255 == pytest.approx(0.192156866, abs=0.006)
    assert actual["original_firstorder_90Percentile"] / 255 == pytest.approx(0.349019617, abs=0.006)
    assert actual["original_firstorder_Variance"] / 255**2 == pytest.approx(0.003362207, rel=0.05)
    assert 4 * actual["original_firstorder_Energy"] / 255**2 == pytest.approx(494.6, rel=0.03)


def test_names_are_pyradiomics_own_and_complete(plain) -> None:
    actual = set(plain(*REGIONS["inside"]))
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == len(LOG_COLUMNS) == 102
    assert actual == set(FEATURE_NAMES)
    families = [name.split("_")[1] for name in FEATURE_NAMES]
    assert [families.count(family) for family in FAMILIES] == [9, 18, 24, 16, 16, 14, 5]
    assert families == sorted(families, key=FAMILIES.index)


def test_log_columns_are_the_scale_like_ones() -> None:
    """Ten times the side: a hundred times the area. Such columns need the logarithm, ratios not."""
    log = {n.split("_", 1)[1] for n, yes in zip(FEATURE_NAMES, LOG_COLUMNS, strict=True) if yes}
    assert {"firstorder_Energy", "shape2D_PixelSurface", "glszm_ZoneVariance"} <= log
    assert not log & {"shape2D_Sphericity", "glcm_Correlation", "glcm_Imc1", "firstorder_Mean"}


def test_settings_key_tells_settings_apart() -> None:
    assert settings_key(25.0, "area") == settings_key(25, "area")
    assert len({settings_key(25, "area"), settings_key(32, "area"), settings_key(25, "x")}) == 3
    assert "pyradiomics" in settings_key(25, "area")


def test_one_itk_thread_and_no_log_lines(capfd) -> None:
    Extractor().extract(*REGIONS["two pixels, diagonal"])
    assert SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1
    assert logging.getLogger("radiomics").level == logging.CRITICAL
    assert capfd.readouterr() == ("", "")


def test_jax_is_never_imported() -> None:
    code = (
        "import sys, kacl_jax.feedback, kacl_jax.radiomics.host as host; host.Extractor(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('jax', 'jaxlib', 'flax', 'optax')])"
    )
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
