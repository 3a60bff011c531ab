"""One region that cannot be measured is one row with a reason; a call that makes no sense is one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equal_values import assert_equal, both
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kacl_jax.radiomics import FEATURE_NAMES, extract, extraction
from kacl_jax.radiomics.counts import bins, by_numba
from kacl_jax.runtime.errors import UserError

BACKENDS = pytest.mark.parametrize("backend", ["jax", "pyradiomics"])
FEW = extraction.FEW_LEVELS
# These need no floors of their own in float32, and every matrix has one of them.
IN_SINGLE_PRECISION = (
    "firstorder_Mean",
    "firstorder_Kurtosis",
    "glcm_Contrast",
    "glrlm_RunPercentage",
    "glszm_ZonePercentage",
    "gldm_DependenceVariance",
    "ngtdm_Coarseness",
)
quietly = pytest.mark.filterwarnings("ignore:.* have one or two grey levels")


def noise(highest: float = 200, side: int = 20) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, highest, (side, side)).astype(np.float32)


def full(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape, bool)


def features(image: np.ndarray, mask: np.ndarray, **options: Any) -> np.ndarray:
    return extract([image], [mask], dtype="float64", **options).features[0]


# ---- rows -----------------------------------------------------------------------------------------------------


def too_many_levels() -> dict[str, tuple[np.ndarray, float]]:
    random = np.random.default_rng(1)
    patch, coarse = noise(), random.integers(0, 10, (20, 20)).astype(np.float32)
    patch[5:10, 5:10] = 1.2e6
    coarse[5:10, 5:10] = 40000
    return {
        "48,000 levels of 25": (patch, 25.0),
        "0 and 65536": (np.where(random.random((20, 20)) < 0.5, 0, 65536).astype(np.float32), 1.0),
        "0 to 9 and 40000": (coarse, 1.0),
        "a million levels": (noise(1e6), 1.0),
        "more levels than numbers": (noise(), 1e-320),
        "8-bit grey values": (noise().astype(np.uint8), 1e-3),
    }


@BACKENDS
@pytest.mark.parametrize("name", too_many_levels())
def test_too_many_grey_levels_are_a_row_with_its_reason(name, backend) -> None:
    image, width = too_many_levels()[name]
    sane = np.minimum(image, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = extract([image, sane], [full(image)] * 2, backend=backend, bin_width=width)
    assert found.ready[0] == False  # noqa: E712 an element of a numpy array
    assert found.reasons[0] == "more than 4096 grey levels; take wider bins"
    assert np.isnan(found.features[0]).all()


def test_the_limit_is_what_pyradiomics_arrays_may_take() -> None:
    """With 4,000 levels 2 GiB are 67,109 pixels of one level, which may be one zone."""
    image = np.zeros((400, 400), np.float32)
    image[200:] = np.linspace(0, 4000, 200)[:, None]
    reason = extract([image], [full(image)], bin_width=1.0).reasons[0]
    assert reason == "too many grey levels for its number of pixels; take wider bins"


@BACKENDS
@pytest.mark.parametrize("options", [{"bin_count": 10**9}, {"bin_count": 10**20}], ids=str)
def test_a_huge_number_of_bins_is_no_huge_array(options, backend) -> None:
    found = extract([noise()], [full(noise())], backend=backend, **options)
    assert found.reasons == ("more than 4096 grey levels; take wider bins",)


@BACKENDS
def test_bins_that_float32_cannot_tell_apart(backend) -> None:
    image = np.linspace(1e6, 1e6 + 1e-3, 400).reshape(20, 20)
    found = extract([image], [full(image)], backend=backend, bin_width=5e-4)
    assert found.reasons == ("its bins are narrower than float32 can tell apart",)
    found = extract([noise()], [full(noise())], backend=backend, bin_width=1e300)
    assert "its bins cannot be made" in found.reasons[0]


@BACKENDS
def test_every_row_that_is_wrong_has_its_reason_and_the_others_their_values(backend) -> None:
    good = noise()
    bad = {
        "the region has pixels that are NaN or infinite": np.where(good > 199, np.nan, good),
        "empty mask": good,
        "image (20, 20) and mask (20, 19) must have one shape [h w]": good,
        "the image is int64; it must be uint8 or float, grey 0–255": good.astype(int),
        "the mask is uint8; it must be bool": good,
        "the image is object; it must be uint8 or float, grey 0–255": None,
    }
    masks = [full(good)] * 6
    masks[1], masks[2] = ~masks[1], masks[2][:, 1:]
    masks[4] = masks[4].astype(np.uint8)
    images = [good, *bad.values(), good]
    found = extract(images, [full(good), *masks, full(good)], backend=backend, dtype="float64")
    assert found.ready.tolist() == [True, *[False] * 6, True]
    assert found.reasons == ("", *bad, "")
    assert np.isnan(found.features[1:-1]).all()
    alone = features(good, full(good), backend=backend)
    np.testing.assert_array_equal(found.features[[0, -1]], [alone, alone])


@BACKENDS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_lies_outside_of_the_region_does_not_count(backend, bad) -> None:
    clean = noise().astype(np.float64)
    mask = full(clean)
    mask[:2] = mask[7, 7] = False
    dirty = np.where(mask, clean, bad)
    np.testing.assert_array_equal(
        features(dirty, mask, backend=backend), features(clean, mask, backend=backend)
    )
    dirty[4, 4] = bad
    found = extract([dirty], [mask], backend=backend)
    assert found.reasons == ("the region has pixels that are NaN or infinite",)


@BACKENDS
@quietly
def test_what_pyradiomics_refuses_is_not_ready(backend) -> None:
    pixels = np.full((9, 9), 7, np.uint8)
    masks = np.zeros((3, 9, 9), bool)
    masks[0, 4, 4] = masks[1, 3, 2:7] = masks[2, 2:5, 2:7] = True
    actual = extract(np.stack([pixels] * 3), masks, backend=backend)
    assert actual.ready.tolist() == [False, False, True]
    assert actual.reasons == ("one pixel", "a line", FEW)
    assert np.isnan(actual.features[:2]).all()


# ---- few grey levels ------------------------------------------------------------------------------------------


@BACKENDS
def test_regions_with_one_or_two_grey_levels_are_warned_about_once(backend) -> None:
    grey = noise()
    images = [grey, grey / 200, (grey - 100) / 60, grey]
    sentence = r"2 of 4 regions \(first: item 1\) have one or two grey levels.*scale them to 0–255"
    with pytest.warns(UserWarning, match=sentence) as caught:
        found = extract(images, [full(grey)] * 4, backend=backend)
    assert len(caught) == 1
    assert found.ready.all()
    assert found.reasons == ("", FEW, FEW, "")


def test_who_asks_for_two_levels_gets_no_warning() -> None:
    assert extract([noise()], [full(noise())], bin_count=2).reasons == ("",)


# ---- the whole call -------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *(({"bin_width": w}, "bin_width is") for w in (0, -5.0, np.nan, np.inf, "25", None, 1j)),
        *(({"bin_count": n}, "bin_count is") for n in (0, -3, 2.5, "16", np.inf, [16], True)),
        ({"dtype": "float16"}, "dtype is"),
        *(({"workers": n}, "workers is") for n in (0, -1, 1.5, None, True)),
        ({"images": None}, "images have the shape ()"),
        ({"images": noise()}, "images have the shape (20, 20)"),
        ({"images": np.zeros((1, 20, 20), int)}, "the image is int64"),
        ({"masks": np.zeros((1, 20, 20))}, "the mask is float64"),
        ({"masks": []}, "there are 1 images and 0 masks"),
    ],
    ids=str,
)
def test_only_what_is_wrong_with_the_whole_call_raises(backend, options, sentence) -> None:
    call: dict[str, Any] = {"images": [noise()], "masks": [full(noise())], **options}
    with pytest.raises(UserError) as error:
        extract(**call, backend=backend)
    assert sentence in str(error.value)


# ---- bounds ---------------------------------------------------------------------------------------------------


@quietly
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    low=st.floats(-1e12, 1e12) | st.sampled_from([0.0, 1e6]),
    span=st.floats(-4, 12),
    bins_in_span=st.floats(-3, 2.5) | st.floats(-3, 12),
)
def test_any_range_and_any_width(seed, low, span, bins_in_span) -> None:
    """Both backends agree, in values and in what has none, for ranges and widths from 1e-4 to 1e12."""
    random = np.random.default_rng(seed)
    image = low + 10**span * random.random((12, 9)) ** random.integers(1, 9)
    mask = random.random((12, 9)) < 0.8
    mask[:2, :2] = True
    options = {"bin_width": min(10 ** (span - bins_in_span), 1e12)}
    actual, expected = both([(image, mask)], **options)
    assert_equal(actual, expected, "float64")
    single, _ = both([(image, mask)], "float32", **options)
    shown = [FEATURE_NAMES.index(f"original_{name}") for name in IN_SINGLE_PRECISION]
    np.testing.assert_allclose(
        single.features[:, shown], expected.features[:, shown], rtol=1e-3, atol=1e-6
    )


COUNT_UNDER_BOUNDSCHECK = """
import numpy as np
from kacl_jax.radiomics import extraction
from kacl_jax.radiomics.counts import bins, by_numba

random, counted = np.random.default_rng(0), 0
for _ in range(400):
    span, shape = 10 ** random.uniform(-4, 12), random.integers(2, 62, 2)
    width = span / 10 ** random.uniform(-3, random.choice([2, 12]))
    image = random.choice([0, 1e6, -span]) + span * random.random(shape) ** random.integers(1, 9)
    region = extraction._prepare_region(
        image, random.random(shape) < random.uniform(0.1, 1), "jax", "float64", width, None
    )
    if region.level is not None:
        tile = np.pad(region.level, [(1, 63 - n) for n in region.level.shape])[None].astype(np.uint8)
        by_numba.count_matrices(tile, tile, n_levels=region.target.n_levels)
        counted += 1
print("counted", counted)
"""


def test_no_index_leaves_its_array(tmp_path: Path) -> None:
    """With numba's own check of every index; it compiles into another cache for that."""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_UNDER_BOUNDSCHECK],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 100


def test_the_compiled_loops_never_see_what_would_lead_them_out_of_their_arrays() -> None:
    level = np.zeros((1, 8, 8), np.uint8)
    level[0, 1:7, 1:7] = 12
    for wrong, sentence in (
        (level, "there is level 12; 11 can be counted"),
        (level.astype(np.int16), "expected uint8 levels"),
        (level[:, 1:], "expected uint8 levels"),
        (np.roll(level // 2, 1, 1), "on the rim"),
    ):
        with pytest.raises(ValueError, match=sentence):
            by_numba.count_matrices(np.zeros(wrong.shape, np.uint8), wrong, n_levels=11)


def test_values_too_large_or_too_fine_for_float32_go_to_the_host() -> None:
    """Otherwise Kurtosis, a ratio of fourth powers, would be NaN."""
    kurtosis = FEATURE_NAMES.index("original_firstorder_Kurtosis")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for scale in (1e-12, 1e12):
            found = extract([noise(scale)], [full(noise())], backend="jax", bin_width=scale / 8)
            assert found.reasons[0].startswith("on the host: float32 has no room")
            assert found.features[0, kurtosis] == pytest.approx(1.8, abs=0.2)


def test_the_steps_table_of_levels_has_its_size_for_any_bin_width() -> None:
    """Of 1e-9 there would be 255 billion edges in each row."""
    table = bins.level_table(1e-9)
    assert table.dtype == np.uint8
    np.testing.assert_array_equal(table, np.triu(np.full((256, 256), 255), 1) + np.eye(256))
