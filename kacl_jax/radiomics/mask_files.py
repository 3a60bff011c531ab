"""Regions from mask files: for each image one file of the same name and size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from kacl_jax.images.reader import BrokenImage, Picture, read_picture
from kacl_jax.radiomics.image_folder import Region, by_name, list_images
from kacl_jax.radiomics.parts import WHOLE, Part
from kacl_jax.runtime.errors import UserError

_MAX_LABELS = 32  # a file with more values is a picture or a soft mask
_LARGE_SHARE = 0.9
_NAMED = 3  # files that a message names


@dataclass(frozen=True)
class MaskFile:
    """A region in a mask file: where its values are above `threshold`, or else equal `label`, or else are not 0."""

    file: Path
    label: int | None = None
    threshold: float | None = None

    def mask(self, size: tuple[int, int], max_megapixels: int) -> Bool[np.ndarray, "h w"]:
        """See `Shape.mask`."""
        values = _read_values(self.file, max_megapixels).values
        mask = self.select(values)
        if self.label is not None and not mask.any():
            has = ", ".join(map(str, _labels(values))) or "none"
            raise UserError(f"the mask has no label {self.label}; its labels: {has}")
        return mask

    def select(self, values: Shaped[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """The region, from the file's values."""
        if self.threshold is not None:
            return values > self.threshold
        return values != 0 if self.label is None else values == self.label


class _Survey(NamedTuple):
    """What a mask file holds. why_soft: why it has no labels, or ''. is_large: whether it may be inverted."""

    labels: tuple[int, ...]
    why_soft: str
    is_large: bool


def regions_from_masks(
    images: Path,
    masks: Path,
    *,
    label: int | None,
    all_labels: bool,
    threshold: float | None,
    max_megapixels: int,
    part: Part = WHOLE,
) -> tuple[list[Region], list[str]]:
    """The regions of the part's images, in the order of the names, and warnings.

    Reads the part's masks once, so that what a flag decides is known before anything is computed. A mask that cannot
    be read keeps its region, whose reading says why.

    Args:
      label: measure this label only. all_labels: one region for each label. threshold: the region is where the mask's
        values are above it; without it a mask has at most 32 values and is no JPEG and no float.

    Raises:
      UserError: a folder cannot be used; an image has no mask; a mask has several labels, or is soft, and no flag says
        what to do.
    """
    if images.resolve() == masks.resolve():
        raise UserError(
            f"--masks={masks} is the folder of the images; give the folder of the masks"
        )
    file_from_name = by_name(list_images(images))
    mask_from_name = by_name(list_images(masks))
    _check_that_masks_exist(file_from_name, mask_from_name, masks)
    names = part.select(list(file_from_name))
    shapes = [MaskFile(mask_from_name[name], label, threshold) for name in names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        surveys = list(pool.map(lambda shape: _survey(shape, max_megapixels), shapes))
    _check_surveys(shapes, surveys, needs_choice=label is None and not all_labels)
    regions = []
    for name, shape, survey in zip(names, shapes, surveys, strict=True):
        file = file_from_name[name]
        if all_labels and survey is not None and survey.labels:
            for each in survey.labels:
                regions.append(Region(file.name, each, file, replace(shape, label=each)))
        else:
            regions.append(Region(file.name, label or 0, file, shape))
    return regions, _warnings(shapes, surveys, len(mask_from_name) - len(file_from_name))


def _survey(shape: MaskFile, max_megapixels: int) -> _Survey | None:
    """None if the file cannot be read."""
    try:
        picture = _read_values(shape.file, max_megapixels)
    except BrokenImage:
        return None
    mask = shape.select(picture.values)
    touches = mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()
    is_large = bool(touches or mask.mean() > _LARGE_SHARE)
    if shape.threshold is not None:
        return _Survey((), "", is_large)
    why_soft = _why_soft(picture)
    return _Survey(() if why_soft else _labels(picture.values), why_soft, is_large)


def _read_values(file: Path, max_megapixels: int) -> Picture:
    picture = read_picture(file, max_megapixels)
    if picture.values.ndim == 3:
        raise BrokenImage(file, "has colours; save the mask in grey, one value for each label")
    return picture


def _why_soft(picture: Picture) -> str:
    if picture.lossy:
        return "is compressed as JPEG, which blurs its edges"
    if picture.values.dtype.kind == "f":
        return "holds float values"
    count = np.unique(picture.values).size
    return f"has {count} different values" if count > _MAX_LABELS else ""


def _labels(values: Shaped[np.ndarray, "h w"]) -> tuple[int, ...]:
    return tuple(int(value) for value in np.unique(values) if value != 0)


def _check_that_masks_exist(
    file_from_name: dict[str, Path], mask_from_name: dict[str, Path], masks: Path
) -> None:
    missing = [name for name in file_from_name if name not in mask_from_name]
    if not missing:
        return
    first = file_from_name[missing[0]]
    alike = [file.name for name, file in mask_from_name.items() if missing[0] in name]
    hint = f"; is it {alike[0]}? A mask has the name of its image" if alike else ""
    raise UserError(
        f"{masks} has no mask for {len(missing)} images (the first is {first.name}){hint}"
    )


def _check_surveys(
    shapes: Sequence[MaskFile], surveys: Sequence[_Survey | None], *, needs_choice: bool
) -> None:
    known = [(shape.file, survey) for shape, survey in zip(shapes, surveys, strict=True) if survey]
    soft = [f"{file.name} {survey.why_soft}" for file, survey in known if survey.why_soft]
    if soft:
        raise UserError(
            f"{_first(soft)}: a mask without sharp labels; save it as PNG with one value for each label, or give "
            "--threshold=T to use the values above T as the region"
        )
    several = [
        f"{file.name} has the labels {', '.join(map(str, survey.labels))}"
        for file, survey in known
        if len(survey.labels) > 1
    ]
    if several and needs_choice:
        raise UserError(
            f"{_first(several)}; choose one, such as --label=2, or give --label=all for one row per label"
        )


def _first(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED
    return "; ".join(texts[:_NAMED]) + (f"; and {more} more masks" if more > 0 else "")


def _warnings(
    shapes: Sequence[MaskFile], surveys: Sequence[_Survey | None], unused: int
) -> list[str]:
    large = [
        shape.file.name
        for shape, survey in zip(shapes, surveys, strict=True)
        if survey is not None and survey.is_large
    ]
    lines = []
    if large:
        lines.append(
            f"{len(large)} of {len(shapes)} masks cover over {100 * _LARGE_SHARE:.0f} % of their image or touch all "
            f"four of its sides (the first is {large[0]}); are they inverted?"
        )
    if unused:
        lines.append(f"{unused} masks have no image and are not used")
    return lines
