"""Radiomic features of one region by pyradiomics itself: the tuned call, with the plain call's values.

`RadiomicsFeatureExtractor.execute` spends most of its time on the full image and on binning the
same pixels six times. Here the region is cropped first, the seven feature classes are called
directly and share one binned image. The values are those of `execute` on the full image, bit for
bit. pyradiomics is imported by the first `Extractor`, so that a process which only names features
does not pay for it; jax is never imported here, worker processes pass through this file.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from kacl_jax.radiomics import FAMILIES, FEATURE_NAMES

# Either name brings the same `radiomics` module; the first one installs on a clean machine.
_DISTRIBUTIONS = ("pyradiomics-bhklab", "pyradiomics")


class RadiomicsError(Exception):
    """pyradiomics has no answer for this region. `reason` is short, and the same every time."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def settings_key(bin_width: float, resize_name: str) -> str:
    """All that the value of a feature depends on besides the pixels and the mask.

    resize_name: the name of the function that brought the pixels to their size.
    """
    return (
        f"{_pyradiomics_version()}; 2-D float32 0-255; binWidth={bin_width:g}; force2D=False; "
        f"resize={resize_name}; {len(FEATURE_NAMES)} features"
    )


def crop(pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copies of pixels [h w] and mask [h w], cut to the mask's bounding box (0×0 if it is empty).

    The features do not depend on anything outside of it.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return pixels[:0, :0].copy(), mask[:0, :0].copy()
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return pixels[window].copy(), mask[window].copy()


class Extractor:
    """The 102 features of a region; build it once per process (it imports pyradiomics, about 1 s).

    bin_count: that many bins between the region's extremes, instead of a width.
    Sets ITK to one thread and silences pyradiomics' logger in this process.
    """

    def __init__(self, bin_width: float = 25.0, bin_count: int | None = None) -> None:
        import radiomics
        import SimpleITK

        radiomics.logger.setLevel(logging.CRITICAL)
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        self._image_of = SimpleITK.GetImageFromArray
        self._classes = {family: _feature_class(family) for family in FAMILIES}
        # A 2-D image with force2D=True would lose three of the four directions.
        self._settings = {"binWidth": bin_width, "binCount": bin_count, "force2D": False}

    def extract(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Features float64 [102] in the order of FEATURE_NAMES.

        pixels: uint8 or float32 [h w], grey 0–255. mask: bool [h w], the region; it may touch the border, have
        several parts or fill the array. NaN where pyradiomics gives NaN: the caller decides.
        Raises RadiomicsError for a region that pyradiomics refuses.
        """
        grey = pixels.dtype in (np.uint8, np.float32)
        if not grey or mask.dtype != np.bool_ or pixels.shape != mask.shape:
            raise TypeError(
                f"expected uint8 or float32 pixels and a bool mask of one shape [h w], got {pixels.dtype} "
                f"{pixels.shape} and {mask.dtype} {mask.shape}"
            )
        pixels, mask = crop(pixels, mask)
        refuse_what_pyradiomics_refuses(mask)
        image = self._image_of(pixels.astype(np.float32))
        label = self._image_of(mask.astype(np.uint8))
        shared: dict[str, Any] = {}  # the binned image, computed by the first class that needs it
        values = []
        # A warning turned into an error would be swallowed by pyradiomics and come back as NaN.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for family in FAMILIES:
                values += self._run(family, image, label, shared)
        return np.array(values, np.float64)

    def _run(self, family: str, image: Any, label: Any, shared: dict[str, Any]) -> list[float]:
        try:
            found = self._classes[family](image, label, shared=shared, **self._settings).execute()
        except MemoryError:  # says nothing about the region
            raise
        except Exception as error:
            raise RadiomicsError(f"{family}: {type(error).__name__}: {error}") from error
        prefix = f"original_{family}_"
        names = [name for name in FEATURE_NAMES if name.startswith(prefix)]
        # numpy >= 2.5: some shape features come back complex.
        return [float(np.real(found[name.removeprefix(prefix)])) for name in names]


def refuse_what_pyradiomics_refuses(mask: np.ndarray) -> None:
    """The checks that `execute` makes before it calls a feature class; mask: cropped."""
    if mask.size == 0:
        raise RadiomicsError("empty mask")
    if mask.size == 1:
        raise RadiomicsError("one pixel")
    if min(mask.shape) == 1:
        raise RadiomicsError("a line")


def _feature_class(family: str) -> Any:
    """pyradiomics' class of one family, made to share the binned image with the others."""
    module = importlib.import_module(f"radiomics.{family}")
    name = {"shape2D": "RadiomicsShape2D", "firstorder": "RadiomicsFirstOrder"}
    base = getattr(module, name.get(family, f"Radiomics{family.upper()}"))
    edges_of = importlib.import_module("radiomics.imageoperations").getBinEdges
    feature_names = base.getFeatureNames()

    class SharedBins(base):  # type: ignore[misc, valid-type]
        __module__ = base.__module__  # pyradiomics names its (silenced) loggers by it

        @classmethod
        def getFeatureNames(cls) -> dict[str, bool]:  # the original inspects the class every time
            return feature_names

        def _applyBinning(self, matrix: np.ndarray) -> np.ndarray:
            shared = self.settings["shared"]
            if not shared:
                values = matrix[self.maskArray]
                # The edges depend on the extremes only; Python's min and max over all pixels,
                # once per family, are half of the time of the original.
                extremes = np.array([values.min(), values.max()])
                binned = np.zeros(matrix.shape, "int")
                binned[self.maskArray] = np.digitize(values, edges_of(extremes, **self.settings))
                shared.update(binned=binned, levels=np.unique(binned[self.maskArray]))
            self.coefficients["grayLevels"] = shared["levels"].copy()
            self.coefficients["Ng"] = int(shared["levels"].max())
            return shared["binned"].copy()

    return SharedBins


def _pyradiomics_version() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    raise ModuleNotFoundError(f"pyradiomics is not installed: pip install {_DISTRIBUTIONS[0]}")
