"""Radiomic features of one region by pyradiomics itself, faster than its own call and with the same values.

`RadiomicsFeatureExtractor.execute` spends most of its time on the full image and on binning the
same pixels six times. Here the region is cropped first, and the seven feature classes are called
directly and share one binned image. The values are those of `execute` on the full image, bit for
bit. pyradiomics is imported by the first `Extractor`, so that a process which only needs feature
names does not pay for it. This file never imports jax, because worker processes import it.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from kacl_jax.radiomics import FAMILIES, FEATURE_NAMES

# Both distributions contain the same `radiomics` module; only the first one installs on a clean machine.
_DISTRIBUTIONS = ("pyradiomics-bhklab", "pyradiomics")
# pyradiomics' largest arrays for a region of g grey levels are its GLCM, 4·g² float64 numbers, and its GLSZM, g times
# the pixels of the largest zone; some steps need up to three copies. Its time grows with g³: 40 s for 1,000 levels.
MAX_LEVELS = 4096
_MAX_ZONE_NUMBERS = 2**28  # 2 GiB


class RadiomicsError(Exception):
    """pyradiomics cannot compute this region. `reason` is a short text, always the same for the same cause."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def settings_key(bin_width: float, resize_name: str) -> str:
    """Everything besides pixels and mask on which the value of a feature depends, as a text.

    resize_name: the name of the function that resized the pixels.
    """
    return (
        f"{_pyradiomics_version()}; 2-D float32 0-255; binWidth={bin_width:g}; force2D=False; "
        f"resize={resize_name}; {len(FEATURE_NAMES)} features"
    )


def crop(pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copies of pixels [h w] and mask [h w], cut to the mask's bounding box (0×0 if it is empty).

    The features do not depend on anything outside of the mask.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return pixels[:0, :0].copy(), mask[:0, :0].copy()
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return pixels[window].copy(), mask[window].copy()


class Extractor:
    """The 102 features of a region; build it once per process (it imports pyradiomics, about 1 s).

    bin_count: number of bins between the region's lowest and highest grey value, instead of a width.
    Sets ITK to one thread and silences pyradiomics' logger in this process.
    """

    def __init__(self, bin_width: float = 25.0, bin_count: int | None = None) -> None:
        import radiomics
        import SimpleITK

        radiomics.logger.setLevel(logging.CRITICAL)
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        self._to_itk_image = SimpleITK.GetImageFromArray
        self._get_bin_edges = importlib.import_module("radiomics.imageoperations").getBinEdges
        self._classes = {family: _feature_class(family) for family in FAMILIES}
        # A 2-D image with force2D=True would lose three of the four directions.
        self._settings: dict[str, Any] = {
            "binWidth": bin_width,
            "binCount": bin_count,
            "force2D": False,
        }

    def extract(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Features float64 [102] in the order of FEATURE_NAMES.

        pixels: uint8 or float32 [h w], grey values 0–255. mask: bool [h w], the region; it may touch the border, have
        several components or fill the array. A feature is NaN where pyradiomics gives NaN.
        Raises RadiomicsError for a region that pyradiomics refuses.
        """
        is_grey_dtype = pixels.dtype in (np.uint8, np.float32)
        if not is_grey_dtype or mask.dtype != np.bool_ or pixels.shape != mask.shape:
            raise TypeError(
                f"expected uint8 or float32 pixels and a bool mask of one shape [h w], got {pixels.dtype} "
                f"{pixels.shape} and {mask.dtype} {mask.shape}"
            )
        pixels, mask = crop(pixels, mask)
        check_region(pixels, mask, self._settings["binWidth"], self._settings["binCount"])
        pixels = pixels.astype(np.float32)
        itk_image, itk_mask = (self._to_itk_image(x) for x in (pixels, mask.astype(np.uint8)))
        values = []
        # If warnings are errors, pyradiomics catches them and returns NaN instead of the value.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            binned = self._grey_levels(pixels, mask)
            for family in FAMILIES:
                values += self._family_values(family, itk_image, itk_mask, binned)
        return np.array(values, np.float64)

    def features_or_reason(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray | str:
        """As `extract`; the reason instead of an error for a region that has no features."""
        try:
            return self.extract(pixels, mask)
        except RadiomicsError as error:
            return error.reason
        except MemoryError:
            return "there is not enough memory for it"

    def _grey_levels(self, pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(grey levels int64 [h w] from 1 on, 0 outside of the region; which of them occur)."""
        values = pixels[mask]
        # The edges depend only on the extremes. pyradiomics takes half of its time for Python's min
        # and max over all pixels, once per family.
        extremes = np.array([values.min(), values.max()])
        try:
            levels = np.digitize(values, self._get_bin_edges(extremes, **self._settings))
        except ValueError as error:
            raise RadiomicsError(f"its bins cannot be made: {error}") from error
        if levels.min() < 1:
            raise RadiomicsError("its bins are narrower than float32 can tell apart")
        if int(levels.max()) * int(np.bincount(levels).max()) > _MAX_ZONE_NUMBERS:
            raise RadiomicsError("too many grey levels for its number of pixels; take wider bins")
        binned = np.zeros(mask.shape, "int")
        binned[mask] = levels
        return binned, np.unique(levels)

    def _family_values(
        self, family: str, image: Any, label: Any, binned: tuple[np.ndarray, np.ndarray]
    ) -> list[float]:
        try:
            values_by_name = self._classes[family](
                image, label, binned=binned, **self._settings
            ).execute()
        except MemoryError:  # not a property of the region
            raise
        except Exception as error:
            raise RadiomicsError(f"{family}: {type(error).__name__}: {error}") from error
        prefix = f"original_{family}_"
        names = [name for name in FEATURE_NAMES if name.startswith(prefix)]
        # With numpy >= 2.5 some shape features are complex numbers.
        return [float(np.real(values_by_name[name.removeprefix(prefix)])) for name in names]


def check_region(
    pixels: np.ndarray, mask: np.ndarray, bin_width: float, bin_count: int | None
) -> None:
    """Raise RadiomicsError for a region that cannot be measured. pixels and mask: cropped.

    `execute` refuses an empty mask, one pixel and a line. With pixels that are not finite or more than MAX_LEVELS bins
    it would fail, take all memory, or write outside of its arrays.
    """
    if mask.size == 0:
        raise RadiomicsError("empty mask")
    if mask.size == 1:
        raise RadiomicsError("one pixel")
    if min(mask.shape) == 1:
        raise RadiomicsError("a line")
    values = pixels[mask]
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RadiomicsError("the region has pixels that are NaN or infinite")
    if (bin_count or (high - low) / float(bin_width)) > MAX_LEVELS:
        raise RadiomicsError(f"more than {MAX_LEVELS} grey levels; take wider bins")


def _feature_class(family: str) -> Any:
    """pyradiomics' class of one family, changed so that it takes the binned image that all families share."""
    module = importlib.import_module(f"radiomics.{family}")
    class_names = {"shape2D": "RadiomicsShape2D", "firstorder": "RadiomicsFirstOrder"}
    base = getattr(module, class_names.get(family, f"Radiomics{family.upper()}"))
    feature_names = base.getFeatureNames()

    class SharedBins(base):  # type: ignore[misc, valid-type]
        __module__ = base.__module__  # pyradiomics names its loggers, which are silenced, after it

        @classmethod
        def getFeatureNames(cls) -> dict[str, bool]:
            return feature_names  # the original inspects the class in every call

        def _applyBinning(self, matrix: np.ndarray) -> np.ndarray:
            binned: np.ndarray
            binned, levels = self.settings["binned"]
            self.coefficients["grayLevels"] = levels.copy()
            self.coefficients["Ng"] = int(levels.max())
            return binned.copy()

    return SharedBins


def _pyradiomics_version() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    raise ModuleNotFoundError(f"pyradiomics is not installed: pip install {_DISTRIBUTIONS[0]}")
