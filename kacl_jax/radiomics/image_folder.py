"""The folder of images that the radiomics command measures, and its regions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from kacl_jax.images import file_names
from kacl_jax.images.reader import FILE_ENDINGS, read_grey
from kacl_jax.runtime.errors import UserError


@runtime_checkable  # the tests check the types of arguments
class Shape(Protocol):
    """Where a region lies: a mask file or a box."""

    def mask(self, size: tuple[int, int], max_megapixels: int) -> Bool[np.ndarray, "h w"]:
        """The region in an image of `size` (h, w) pixels; a mask file's mask has the file's own size.

        Raises:
            BrokenImage: the mask file cannot be read.
            UserError: there is no region in an image of this size.
        """
        ...


@dataclass(frozen=True)
class Region:
    """One row of the table: the image's name, the region's number or label in it, the image's file and the shape."""

    image: str
    number: int
    file: Path
    shape: Shape

    def read(
        self, max_megapixels: int
    ) -> tuple[UInt8[np.ndarray, "h w"] | Float32[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """The file's own grey values, and the mask.

        Raises:
            BrokenImage, UserError: there are none; the message says why.
        """
        pixels = read_grey(self.file, max_megapixels)
        mask = self.shape.mask((pixels.shape[0], pixels.shape[1]), max_megapixels)
        if pixels.shape != mask.shape:
            raise UserError(f"the image is {pixels.shape}, but its mask is {mask.shape}")
        if not mask.any():
            raise UserError("the mask is empty")
        return pixels, mask


def list_images(folder: Path) -> list[Path]:
    """The files with an image's ending, sorted; hidden files, as macOS leaves beside images, do not count.

    Raises:
        UserError: the folder cannot be read or has none, or a name is a formula.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from error
    files = [
        folder / name
        for name in names
        if name.lower().endswith(FILE_ENDINGS) and not name.startswith(".")
    ]
    if not files:
        raise UserError(f"{folder} has no image ({', '.join(FILE_ENDINGS)})")
    for file in files:
        if wrong := file_names.objection(file.name):
            raise UserError(f"{folder}: the name {file.name!r} {wrong}; rename the file")
    return files


def by_name(files: Sequence[Path]) -> dict[str, Path]:
    """Name without ending → file.

    Raises:
        UserError: two files claim one name.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        groups[file.stem].append(file)
    for same in groups.values():
        if len(same) > 1:
            names = " and ".join(file.name for file in same)
            raise UserError(
                f"{same[0].parent} has {names}, which have the same name; keep one of them"
            )
    return {name: same[0] for name, same in groups.items()}
