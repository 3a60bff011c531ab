"""What `extract` accepts: what is wrong with the whole call, and what is wrong with one of its items."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from kacl_jax.radiomics.host import RadiomicsError
from kacl_jax.runtime.errors import UserError


def as_items(arrays: Any) -> Any:
    """A sequence as it is; anything else as a numpy array."""
    return arrays if isinstance(arrays, Sequence) else np.asarray(arrays)


def check_call(
    images: Any,
    masks: Any,
    backend: Any,
    bin_width: Any,
    bin_count: Any,
    dtype: Any,
    workers: Any,
) -> None:
    """Raise UserError for what is wrong with a call of `extract` as a whole, one line for each problem.

    images, masks: from `as_items`. An array has one dtype and one number of axes for all its items, so a wrong one is a
    problem of the call. In a sequence it is a problem of the item: see `check_item`.
    """
    problems = []
    if backend not in ("pyradiomics", "jax"):
        problems.append(f"backend is {backend!r}; it must be 'pyradiomics' or 'jax'")
    if dtype not in ("float32", "float64"):
        problems.append(f"dtype is {dtype!r}; it must be 'float32' or 'float64'")
    if bin_count is None and not _is_width(bin_width):
        problems.append(f"bin_width is {bin_width!r}; it must be > 0 and finite")
    if bin_count is not None and not _is_count(bin_count):
        problems.append(f"bin_count is {bin_count!r}; it must be a whole number ≥ 1 or None")
    if not _is_count(workers):
        problems.append(f"workers is {workers!r}; it must be a whole number ≥ 1")
    arrays = {"images": images, "masks": masks}
    wrong_arrays = [line for name, x in arrays.items() if (line := _array_problem(name, x))]
    if not wrong_arrays and len(images) != len(masks):
        problems.append(f"there are {len(images)} images and {len(masks)} masks")
    if problems or wrong_arrays:
        raise UserError(
            "Radiomics cannot be computed:\n  " + "\n  ".join([*problems, *wrong_arrays])
        )


def check_item(image: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """An item's image, uint8 or float [h w], and its mask, bool [h w], as numpy arrays.

    Raises RadiomicsError if they are something else.
    """
    try:
        image, mask = np.asarray(image), np.asarray(mask)
    except (TypeError, ValueError) as error:
        raise RadiomicsError(f"the image or the mask is no array: {error}") from error
    problem = _image_dtype_problem(image.dtype) or _mask_dtype_problem(mask.dtype)
    if problem:
        raise RadiomicsError(problem)
    if image.ndim != 2 or image.shape != mask.shape:
        raise RadiomicsError(f"image {image.shape} and mask {mask.shape} must have one shape [h w]")
    return image, mask


def _is_width(value: Any) -> bool:
    return isinstance(value, float | int | np.number) and bool(0 < value <= sys.float_info.max)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _array_problem(name: str, items: Any) -> str:
    """'' for a sequence, for an array of objects with one axis, and for an array that fits."""
    if isinstance(items, Sequence) or (items.dtype == object and items.ndim == 1):
        return ""
    if items.ndim != 3:
        return f"{name} have the shape {items.shape}; give [n h w] or a sequence of [h w]"
    check_dtype = _image_dtype_problem if name == "images" else _mask_dtype_problem
    return check_dtype(items.dtype)


def _image_dtype_problem(dtype: np.dtype) -> str:
    if dtype == np.uint8 or np.issubdtype(dtype, np.floating):
        return ""
    return f"the image is {dtype}; it must be uint8 or float, grey 0–255"


def _mask_dtype_problem(dtype: np.dtype) -> str:
    return "" if dtype == np.bool_ else f"the mask is {dtype}; it must be bool"
