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

from kacl_jax.errors import UserError
from kacl_jax.radiomics import FEATURE_NAMES, bins, host, tiles
from kacl_jax.radiomics.host import RadiomicsError
from kacl_jax.radiomics.matrices import Formulation

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
    progress: Callable[[int], None] = lambda done: None,
) -> Extraction:
    """The 102 two-dimensional features of one region per image.

    Args:
      images: uint8 or float [n h w], grey 0–255, or a sequence of [h w] of any sizes.
      masks: bool [n h w] or a sequence, the regions.
      backend: 'pyradiomics' on the host, or 'jax' on the default device with pyradiomics' values.
      bin_width: of the grey level bins, in grey values.
      bin_count: that many bins between a region's extremes, instead of a width.
      dtype: of the features; the JAX backend also computes in it.
      progress: called with the number of regions done so far.

    Raises:
      UserError: one line for each problem, naming the item: shape, dtype, NaN pixels, empty mask.

    Warns:
      UserWarning: where all grey values lie in [0, 1] and one bin would hold them all.
    """
    _check(images, masks, backend, bin_width, bin_count, dtype)
    n = len(images)
    found = Extraction(np.full((n, len(FEATURE_NAMES)), np.nan, dtype), np.zeros(n, bool), ())
    reasons = [""] * n
    tile_rows: dict[tuple[int, int, np.dtype], list[int]] = defaultdict(list)
    crops: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    host_rows = []
    for row in range(n):
        pixels, mask = host.crop(_grey(images[row]), masks[row])
        level = np.zeros((0, 0), np.int16)
        try:
            host.refuse_what_pyradiomics_refuses(mask)
        except RadiomicsError as error:
            reasons[row] = error.reason
        else:
            if backend == "jax":
                level = bins.levels(pixels, mask, bin_width=bin_width, bin_count=bin_count)
                reasons[row] = _over_a_limit(level)
            if backend == "jax" and not reasons[row]:
                tile_rows[_bucket(level, pixels.dtype, counting())].append(row)
            else:
                host_rows.append(row)
        crops.append((pixels, mask, level))
    done = n - len(host_rows) - sum(map(len, tile_rows.values()))
    for (side, levels, kind), rows in tile_rows.items():
        for chunk in _chunks(rows, side):
            part = [crops[row] for row in chunk]
            found.features[chunk] = _on_device(part, side, levels, kind, dtype, len(chunk))
            found.ready[chunk] = True
            done += len(chunk)
            progress(done)
    if host_rows:
        extractor = host.Extractor(bin_width, bin_count)
    for row in host_rows:
        try:
            found.features[row] = extractor.extract(*crops[row][:2])
            found.ready[row] = True
        except RadiomicsError as error:
            reasons[row] = error.reason
        done += 1
        progress(done)
    if backend == "jax" and host_rows:
        logging.info("%d of %d regions were left to the host path", len(host_rows), n)
    return found._replace(reasons=tuple(reasons))


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


def _bucket(level: np.ndarray, dtype: np.dtype, by: Counting) -> tuple[int, int, np.dtype]:
    """The smallest tile side and level number that hold a region, and the kind of its pixels."""
    side = next(side for side in SIDES[by] if side >= max(level.shape) + 2)
    return side, next(n for n in LEVELS if n >= level.max()), dtype


def _room(side: int, by: Counting) -> int:
    """How many tiles of one side go through the program at once."""
    return max(1, min(_MOST_TILES[by], _TILE_PIXELS[by] // side**2))


def _chunks(rows: list[int], side: int) -> list[list[int]]:
    room = _room(side, counting())
    return [rows[start : start + room] for start in range(0, len(rows), room)]


def _on_device(
    crops: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    side: int,
    levels: int,
    kind: np.dtype,
    dtype: str,
    used: int,
) -> np.ndarray:
    shape = (_room(side, counting()), side, side)
    pixels, level = np.zeros(shape, kind), np.zeros(shape, np.uint8)
    for row, (grey, _, binned) in enumerate(crops):
        window = np.s_[row, 1 : 1 + grey.shape[0], 1 : 1 + grey.shape[1]]
        pixels[window], level[window] = grey, binned
    with jax.enable_x64(dtype == "float64"):
        found = _program(levels, counting())(pixels, level, used=np.int32(used))
        return np.asarray(found)[:used]


@functools.cache
def _program(levels: int, by: Counting) -> Callable[..., jax.Array]:
    if by != "numba":
        return jax.jit(functools.partial(tiles.features, levels=levels, formulation=by))
    from kacl_jax.radiomics import compiled

    formulas = jax.jit(tiles.formulas)

    def run(pixels: np.ndarray, level: np.ndarray, *, used: np.int32) -> jax.Array:
        return formulas(compiled.count(pixels, level, levels=levels), pixels, level)

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
