"""Radiomic features of many regions: by pyradiomics on the host, or by the same formulas in JAX.

The JAX backend cuts every region out of its image, pads it to one of a few tile sides and computes tiles of the same
side together, so that a few compiled programs serve regions of any size. On a CPU with numba installed, numba counts
the matrices and JAX computes the formulas. Regions larger than the largest tile, or with too many grey levels, go to
the host path, which is slow but has no limit.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from kacl_jax.radiomics import FEATURE_NAMES, host, tiles
from kacl_jax.radiomics.arguments import as_items, check_call, check_item
from kacl_jax.radiomics.counts import bins
from kacl_jax.radiomics.counts.matrices import Formulation
from kacl_jax.radiomics.extractor_pool import shared_pool
from kacl_jax.radiomics.host import RadiomicsError

CountingMethod = Formulation | Literal["numba"]
# px: the longer side of a region plus 2 must fit. numba has few, because its time hardly depends on the empty margin.
TILE_SIDES: dict[CountingMethod, tuple[int, ...]] = {
    "numba": (64, 160, 320, 544),
    "scatter": (64, 112, 160, 224, 320, 544),
    "matmul": (64, 112, 160, 224, 320, 544),
}
LARGEST_TILE = 544
LEVEL_LIMITS = (16, 64)
# Limits of one batch of tiles, to bound its memory.
_MAX_BATCH_PIXELS: dict[CountingMethod, int] = {
    "numba": 8 * 192**2,
    "scatter": 8 * 192**2,
    "matmul": 64 * 192**2,
}
_MAX_BATCH_TILES: dict[CountingMethod, int] = {"numba": 8, "scatter": 8, "matmul": 64}


# In the reason of a region with features: its textures say little, because its grey values need wider ranges or
# narrower bins.
FEW_LEVELS = "one or two grey levels"
# Beyond these limits the fourth power of a grey value leaves float32's range.
_FLOAT32_GREY = (1e-6, 1e8)


class Extraction(NamedTuple):
    """The features of n regions.

    features: in the order of FEATURE_NAMES, NaN where pyradiomics gives NaN and in every row that is not ready.
    reasons: for each region, why it is not ready; or why the JAX backend left it to the host, FEW_LEVELS if it has one
      or two grey levels, both joined by '; ', or ''.
    """

    features: Float[np.ndarray, "n f"]
    ready: Bool[np.ndarray, "n"]
    reasons: tuple[str, ...]


def extract(
    images: Sequence[np.ndarray] | np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray,
    *,
    backend: Literal["pyradiomics", "jax"] = "pyradiomics",
    bin_width: float = 25.0,
    bin_count: int | None = None,
    dtype: Literal["float32", "float64"] = "float32",
    workers: int = 1,
) -> Extraction:
    """The 102 two-dimensional features of one region per image.

    What is wrong with one region makes its row not ready, with the reason: a mask that is empty, one pixel or a line,
    pixels of the region that are NaN or infinite, more than `host.MAX_LEVELS` grey levels, and in a sequence an item of
    another dtype or shape. Nothing outside of a region counts.

    Args:
      images: uint8 or float [n h w], grey values 0–255, or a sequence of [h w] of any sizes.
      masks: bool [n h w] or a sequence of bool [h w]: the regions.
      backend: 'pyradiomics' on the host, or 'jax' on the default device, which gives the same values.
      bin_width: of the grey level bins, in grey values.
      bin_count: number of bins between a region's lowest and highest grey value, instead of a width.
      dtype: of the features; the JAX backend also computes in it.
      workers: how many regions or batches are measured side by side: by processes where pyradiomics measures, by
        threads in the JAX backend. The result does not depend on it. Processes take seconds to start and stay for the
        next call with the same number and bins, until the program ends.

    Raises:
      UserError: one line for each problem with the call as a whole: an option, the numbers of images and masks, or the
        dtype or shape of an array [n h w]; or that a worker process cannot start.

    Warns:
      UserWarning: once, if regions have one or two grey levels although more were possible, as those of images that are
        scaled to [0, 1] or z-scored.
    """
    images, masks = as_items(images), as_items(masks)
    check_call(images, masks, backend, bin_width, bin_count, dtype, workers)
    # A numpy number would be rounded otherwise than the same Python number.
    bin_count = None if bin_count is None else int(bin_count)
    bin_width = float(bin_width) if bin_count is None else 0.0
    regions = [
        _prepare_region(image, mask, backend, dtype, bin_width, bin_count)
        for image, mask in zip(images, masks, strict=True)
    ]
    features = np.full((len(regions), len(FEATURE_NAMES)), np.nan, dtype)
    ready = np.array([region.target is not None for region in regions], bool)
    reasons = [region.reason for region in regions]
    rows_by_target: dict[_Bucket | Literal["host"] | None, list[int]] = defaultdict(list)
    for row, region in enumerate(regions):
        rows_by_target[region.target].append(row)
    rows_by_target.pop(None, None)
    on_host = rows_by_target.pop("host", [])
    for rows, values in _compute_batches(regions, rows_by_target, dtype, workers):
        features[rows] = values
    pairs = [(regions[row].pixels, regions[row].mask) for row in on_host]
    results = _measure_on_host(pairs, bin_width, bin_count, workers)
    for row, result in zip(on_host, results, strict=True):
        if isinstance(result, str):
            ready[row], reasons[row] = False, result
            continue
        with np.errstate(over="ignore"):
            features[row] = result
    if backend == "jax" and on_host:
        logging.info("%d of %d regions were measured on the host", len(on_host), len(regions))
    _warn_of_few_levels(ready, reasons)
    return Extraction(features, ready, tuple(reasons))


def _warn_of_few_levels(ready: np.ndarray, reasons: Sequence[str]) -> None:
    rows = [row for row, reason in enumerate(reasons) if ready[row] and FEW_LEVELS in reason]
    if rows:
        warnings.warn(
            f"{len(rows)} of {len(ready)} regions (first: item {rows[0]}) have {FEW_LEVELS}, so their textures say "
            "little. If the images are in [0, 1] or z-scored, scale them to 0–255, or use narrower bins.",
            UserWarning,
            stacklevel=3,
        )


class _Bucket(NamedTuple):
    """The compiled program for a region: one for each tile side, number of grey levels and dtype of the pixels."""

    side: int
    n_levels: int
    pixel_dtype: np.dtype


class _Region(NamedTuple):
    """A region cut out of its image.

    level: grey levels, 0 outside of the region; only where the JAX backend measures it. target: the program that
    computes it, or the host; None if nothing can. reason: as in `Extraction`.
    """

    pixels: UInt8[np.ndarray, "h w"] | Float32[np.ndarray, "h w"]
    mask: Bool[np.ndarray, "h w"]
    level: Int64[np.ndarray, "h w"] | None
    target: _Bucket | Literal["host"] | None
    reason: str


def _prepare_region(
    image: Any, mask: Any, backend: str, dtype: str, bin_width: float, bin_count: int | None
) -> _Region:
    try:
        pixels, mask = host.crop(*check_item(image, mask))
        pixels = _uint8_or_float32(pixels)
        host.check_region(pixels, mask, bin_width, bin_count)
    except RadiomicsError as error:
        return _Region(np.zeros((0, 0), np.uint8), np.zeros((0, 0), bool), None, None, error.reason)
    try:
        level = bins.grey_levels(pixels, mask, bin_width=bin_width, bin_count=bin_count)
    except ValueError:  # the host says what pyradiomics makes of it
        return _Region(pixels, mask, None, "host", "")
    has_few = np.count_nonzero(np.bincount(level[mask])) <= 2 < (bin_count or np.inf)
    few_levels = FEW_LEVELS if has_few else ""
    if backend == "pyradiomics":
        return _Region(pixels, mask, None, "host", few_levels)
    limit_reason = _limit_reason(pixels[mask], level, dtype)
    reason = "; ".join(filter(None, (limit_reason, few_levels)))
    if limit_reason:
        return _Region(pixels, mask, None, "host", reason)
    bucket = _choose_bucket(level, pixels.dtype, choose_counting_method())
    return _Region(pixels, mask, level, bucket, reason)


@functools.cache
def choose_counting_method() -> CountingMethod:
    """The fastest method on the default device: see `by_numba` and `matrices`."""
    if jax.default_backend() != "cpu":
        return "matmul"
    return "numba" if importlib.util.find_spec("numba") else "scatter"


def _uint8_or_float32(pixels: np.ndarray) -> np.ndarray:
    """A value beyond float32's range becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)


def _limit_reason(values: np.ndarray, level: Int64[np.ndarray, "h w"], dtype: str) -> str:
    """Why the JAX backend leaves a region to the host, or ''. values: the region's pixels [k]."""
    if max(level.shape) + 2 > LARGEST_TILE:
        h, w = level.shape
        return f"on the host: {h}×{w} px is over {LARGEST_TILE - 2} px"
    if level.max() > LEVEL_LIMITS[-1]:
        return f"on the host: {level.max()} grey levels are over {LEVEL_LIMITS[-1]}"
    low, high = float(values.min()), float(values.max())
    finest, largest = _FLOAT32_GREY
    if dtype == "float32" and (max(-low, high) > largest or 0 < high - low < finest):
        return f"on the host: float32 has no room for moments of grey values {low:g} to {high:g}"
    return ""


def _choose_bucket(
    level: Int64[np.ndarray, "h w"], pixel_dtype: np.dtype, method: CountingMethod
) -> _Bucket:
    """The smallest tile side and number of grey levels that are enough for a region."""
    side = next(side for side in TILE_SIDES[method] if side >= max(level.shape) + 2)
    return _Bucket(
        side, next(n_levels for n_levels in LEVEL_LIMITS if n_levels >= level.max()), pixel_dtype
    )


def _batch_size(side: int, method: CountingMethod) -> int:
    """How many tiles of one side the program computes at once."""
    return max(1, min(_MAX_BATCH_TILES[method], _MAX_BATCH_PIXELS[method] // side**2))


def _split_into_batches(rows: list[int], side: int) -> list[list[int]]:
    batch_size = _batch_size(side, choose_counting_method())
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def _compute_batches(
    regions: Sequence[_Region], rows_by_bucket: Mapping[Any, list[int]], dtype: str, workers: int
) -> Iterator[tuple[list[int], Float[np.ndarray, "n f"]]]:
    """(rows, their features) of all batches."""
    batches = [
        (bucket, batch_rows)
        for bucket, rows in rows_by_bucket.items()
        for batch_rows in _split_into_batches(rows, bucket.side)
    ]

    def compute(batch: tuple[_Bucket, list[int]]) -> tuple[list[int], Float[np.ndarray, "n f"]]:
        bucket, rows = batch
        return rows, _compute_batch([regions[row] for row in rows], bucket, dtype)

    if workers == 1:
        yield from map(compute, batches)
        return
    for bucket in rows_by_bucket:
        _compiled_program(bucket.n_levels, choose_counting_method())
    # Each program is compiled by its first batch, and only once: the other batches wait for that.
    first = {bucket: batch for batch in reversed(batches) for bucket in [batch[0]]}
    rest = [batch for batch in batches if batch is not first[batch[0]]]
    with ThreadPoolExecutor(workers) as threads:
        for some in (list(first.values()), rest):
            yield from threads.map(compute, some)


def _measure_on_host(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    bin_width: float,
    bin_count: int | None,
    workers: int,
) -> Sequence[np.ndarray | str]:
    """For each region, pixels and mask, its features float64 [f] or the reason why it has none."""
    if not pairs:
        return []
    if workers > 1:
        return shared_pool(workers, bin_width, bin_count).measure(pairs)
    extractor = host.Extractor(bin_width, bin_count)
    return [extractor.features_or_reason(*pair) for pair in pairs]


def _compute_batch(regions: list[_Region], bucket: _Bucket, dtype: str) -> Float[np.ndarray, "n f"]:
    shape = (_batch_size(bucket.side, choose_counting_method()), bucket.side, bucket.side)
    pixels, level = np.zeros(shape, bucket.pixel_dtype), np.zeros(shape, np.uint8)
    for row, region in enumerate(regions):
        assert region.level is not None
        h, w = region.level.shape
        window = np.s_[row, 1 : 1 + h, 1 : 1 + w]
        pixels[window], level[window] = region.pixels, region.level
    with jax.enable_x64(dtype == "float64"):
        features = _compiled_program(bucket.n_levels, choose_counting_method())(
            pixels, level, used=np.int32(len(regions))
        )
        return np.asarray(features)[: len(regions)]


@functools.cache
def _compiled_program(n_levels: int, method: CountingMethod) -> Callable[..., jax.Array]:
    if method != "numba":
        one_by_one = method == "scatter"
        return jax.jit(
            functools.partial(
                tiles.features, n_levels=n_levels, formulation=method, one_by_one=one_by_one
            )
        )
    from kacl_jax.radiomics.counts import by_numba

    features_from_counts = jax.jit(tiles.features_from_counts)

    def count_and_compute(pixels: np.ndarray, level: np.ndarray, *, used: np.int32) -> jax.Array:
        return features_from_counts(
            by_numba.count_matrices(pixels, level, n_levels=n_levels), pixels, level
        )

    return count_and_compute
