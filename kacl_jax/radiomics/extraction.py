"""Radiomic features of many regions: by pyradiomics on the host, or by the same formulas in JAX.

The JAX side cuts every region out of its image, pads it to one of a few tile sides and computes tiles of one side
together: any size of region, a few compiled programs. On a CPU with numba installed, numba counts and JAX computes the
formulas. Regions or bin counts beyond the largest tile go to the host path, which is slow but has no limit.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from kacl_jax.radiomics import FEATURE_NAMES, host, tiles
from kacl_jax.radiomics.counts import bins
from kacl_jax.radiomics.counts.matrices import Formulation
from kacl_jax.radiomics.host import RadiomicsError
from kacl_jax.runtime.errors import UserError

Counting = Formulation | Literal["numba"]
# px, of a tile: a region's sides plus 2 or more. numba's count does not pay for an empty margin.
SIDES: dict[Counting, tuple[int, ...]] = {
    "numba": (64, 160, 320, 544),
    "scatter": (64, 112, 160, 224, 320, 544),
    "matmul": (64, 112, 160, 224, 320, 544),
}
LARGEST = 544
LEVELS = (16, 64)
# Of tiles in one program: bounds memory.
_TILE_PIXELS: dict[Counting, int] = {
    "numba": 8 * 192**2,
    "scatter": 8 * 192**2,
    "matmul": 64 * 192**2,
}
_MOST_TILES: dict[Counting, int] = {"numba": 8, "scatter": 8, "matmul": 64}


class Extraction(NamedTuple):
    """features: [n f] in the order of FEATURE_NAMES, NaN where pyradiomics gives NaN; a row that is not ready is NaN.
    ready: bool [n]. reasons: for each region, why it is not ready, or why the JAX backend left it to the host; else ''.
    """

    features: np.ndarray
    ready: np.ndarray
    reasons: tuple[str, ...]


def extract(
    images: Sequence[np.ndarray] | np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray,
    *,
    backend: Literal["pyradiomics", "jax"] = "pyradiomics",
    bin_width: float = 25.0,
    bin_count: int | None = None,
    dtype: Literal["float32", "float64"] = "float32",
) -> Extraction:
    """The 102 two-dimensional features of one region per image.

    Args:
      images: uint8 or float [n h w], grey 0–255, or a sequence of [h w] of any sizes.
      masks: bool [n h w] or a sequence, the regions.
      backend: 'pyradiomics' on the host, or 'jax' on the default device with pyradiomics' values.
      bin_width: of the grey level bins, in grey values.
      bin_count: that many bins between a region's extremes, instead of a width.
      dtype: of the features; the JAX backend also computes in it.

    Raises:
      UserError: one line for each problem, naming the item: shape, dtype, NaN pixels, empty mask.

    Warns:
      UserWarning: where all grey values lie in [0, 1] and one bin would hold them all.
    """
    _check(images, masks, backend, bin_width, bin_count, dtype)
    regions = [
        _region(image, mask, backend, bin_width, bin_count)
        for image, mask in zip(images, masks, strict=True)
    ]
    features = np.full((len(regions), len(FEATURE_NAMES)), np.nan, dtype)
    ready = np.array([region.way is not None for region in regions], bool)
    reasons = [region.reason for region in regions]
    rows: dict[_Bucket | Literal["host"] | None, list[int]] = defaultdict(list)
    for row, region in enumerate(regions):
        rows[region.way].append(row)
    rows.pop(None, None)
    on_host = rows.pop("host", [])
    for bucket, ours in rows.items():
        assert isinstance(bucket, _Bucket)
        for chunk in _chunks(ours, bucket.side):
            features[chunk] = _on_device([regions[row] for row in chunk], bucket, dtype)
    if on_host:
        extractor = host.Extractor(bin_width, bin_count)
    for row in on_host:
        try:
            features[row] = extractor.extract(regions[row].pixels, regions[row].mask)
        except RadiomicsError as error:
            ready[row], reasons[row] = False, error.reason
    if backend == "jax" and on_host:
        logging.info("%d of %d regions were left to the host path", len(on_host), len(regions))
    return Extraction(features, ready, tuple(reasons))


class _Bucket(NamedTuple):
    """Which program computes a region: one for each tile side, number of grey levels and kind of pixels."""

    side: int
    levels: int
    kind: np.dtype


class _Region(NamedTuple):
    """A region cut out of its image, pixels and mask [h w]; level: its grey level bins, 0 outside, for the JAX backend.

    way: what computes it; None where pyradiomics refuses it. reason: as in `Extraction`.
    """

    pixels: np.ndarray
    mask: np.ndarray
    level: np.ndarray
    way: _Bucket | Literal["host"] | None
    reason: str


def _region(
    image: np.ndarray, mask: np.ndarray, backend: str, bin_width: float, bin_count: int | None
) -> _Region:
    pixels, mask = host.crop(_grey(image), mask)
    level = np.zeros((0, 0), np.int16)
    try:
        host.refuse_what_pyradiomics_refuses(mask)
    except RadiomicsError as error:
        return _Region(pixels, mask, level, None, error.reason)
    if backend == "pyradiomics":
        return _Region(pixels, mask, level, "host", "")
    level = bins.levels(pixels, mask, bin_width=bin_width, bin_count=bin_count)
    over = _over_a_limit(level)
    if over:
        return _Region(pixels, mask, level, "host", over)
    return _Region(pixels, mask, level, _bucket(level, pixels.dtype, counting()), "")


@functools.cache
def counting() -> Counting:
    """What counts fastest here: see `compiled` and `matrices`."""
    if jax.default_backend() != "cpu":
        return "matmul"
    return "numba" if importlib.util.find_spec("numba") else "scatter"


def _grey(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else image.astype(np.float32)


def _over_a_limit(level: np.ndarray) -> str:
    if max(level.shape) + 2 > LARGEST:
        h, w = level.shape
        return f"on the host: {h}×{w} px is over {LARGEST - 2} px"
    if level.max() > LEVELS[-1]:
        return f"on the host: {level.max()} grey levels are over {LEVELS[-1]}"
    return ""


def _bucket(level: np.ndarray, kind: np.dtype, by: Counting) -> _Bucket:
    """The smallest tile side and level number that hold a region."""
    side = next(side for side in SIDES[by] if side >= max(level.shape) + 2)
    return _Bucket(side, next(n for n in LEVELS if n >= level.max()), kind)


def _room(side: int, by: Counting) -> int:
    """How many tiles of one side go through the program at once."""
    return max(1, min(_MOST_TILES[by], _TILE_PIXELS[by] // side**2))


def _chunks(rows: list[int], side: int) -> list[list[int]]:
    room = _room(side, counting())
    return [rows[start : start + room] for start in range(0, len(rows), room)]


def _on_device(regions: list[_Region], bucket: _Bucket, dtype: str) -> np.ndarray:
    shape = (_room(bucket.side, counting()), bucket.side, bucket.side)
    pixels, level = np.zeros(shape, bucket.kind), np.zeros(shape, np.uint8)
    for row, region in enumerate(regions):
        h, w = region.level.shape
        window = np.s_[row, 1 : 1 + h, 1 : 1 + w]
        pixels[window], level[window] = region.pixels, region.level
    with jax.enable_x64(dtype == "float64"):
        found = _program(bucket.levels, counting())(pixels, level, used=np.int32(len(regions)))
        return np.asarray(found)[: len(regions)]


@functools.cache
def _program(levels: int, by: Counting) -> Callable[..., jax.Array]:
    if by != "numba":
        return jax.jit(functools.partial(tiles.features, levels=levels, formulation=by))
    from kacl_jax.radiomics.counts import by_numba

    formulas = jax.jit(tiles.formulas)

    def run(pixels: np.ndarray, level: np.ndarray, *, used: np.int32) -> jax.Array:
        return formulas(by_numba.count(pixels, level, levels=levels), pixels, level)

    return run


def _check(images, masks, backend, bin_width, bin_count, dtype):  # type: ignore[no-untyped-def]
    problems = []
    if backend not in ("pyradiomics", "jax"):
        problems.append(f"backend is {backend!r}; it must be 'pyradiomics' or 'jax'")
    if dtype not in ("float32", "float64"):
        problems.append(f"dtype is {dtype!r}; it must be 'float32' or 'float64'")
    if bin_count is None and not bin_width > 0:
        problems.append(f"bin_width is {bin_width!r}; it must be > 0")
    if bin_count is not None and bin_count < 1:
        problems.append(f"bin_count is {bin_count!r}; it must be ≥ 1 or None")
    if len(images) != len(masks):
        problems.append(f"there are {len(images)} images and {len(masks)} masks")
    unit = []
    for item, (image, mask) in enumerate(zip(images, masks, strict=False)):
        what = _wrong_with(np.asarray(image), np.asarray(mask))
        if what:
            problems.append(f"item {item}: {what}")
        elif image.dtype != np.uint8 and image.min() >= 0 and image.max() <= 1:
            unit.append(item)
    if problems:
        raise UserError("Radiomics cannot be computed:\n  " + "\n  ".join(problems))
    if unit and bin_count is None and bin_width >= 1:
        warnings.warn(
            f"{len(unit)} images (first: item {unit[0]}) have all grey values in [0, 1]; with bin_width "
            f"{bin_width:g} they fall into one or two bins: scale them to 0–255",
            UserWarning,
            stacklevel=3,
        )


def _wrong_with(image: np.ndarray, mask: np.ndarray) -> str:
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        return f"the image is {image.dtype}; it must be uint8 or float, grey 0–255"
    if mask.dtype != np.bool_:
        return f"the mask is {mask.dtype}; it must be bool"
    if image.ndim != 2 or image.shape != mask.shape:
        return f"image {image.shape} and mask {mask.shape} must have one shape [h w]"
    if not np.isfinite(image).all():
        return "the image has pixels that are NaN or infinite"
    return "" if mask.any() else "the mask is empty"
