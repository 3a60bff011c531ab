"""The pictures of a data root in NIH's layout: one PNG file per image.

prepared/reader.py has the same two interfaces for a prepared root: a store, and the Images that it selects.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from kacl_jax.data.tables import Problems
from kacl_jax.images.reader import read_image
from kacl_jax.images.resizing import resize


class Images(Protocol):
    """The pictures of one Records object, in its order. Safe to use from threads."""

    def read(self, image_id: int | np.integer, size: int) -> np.ndarray:
        """The picture as uint8 [size size], resized by `images.resizing.resize`.

        Raises:
            BrokenImage: this picture cannot be read; other pictures may be fine.
            UserError: the store itself is damaged.
        """
        ...


@dataclass(frozen=True)
class PngFiles:
    """One PNG file per image; every `read` decodes the file again."""

    paths: tuple[Path, ...]

    def read(self, image_id: int | np.integer, size: int) -> np.ndarray:
        return resize(read_image(self.paths[image_id]), size)


def find_png_files(root: Path, problems: Problems) -> dict[str, Path]:
    """File name → path of all files in the image folders; calls scandir once per folder and no stat per file."""
    folders = [root / "images", *sorted(root.glob("images_[0-9][0-9][0-9]/images"))]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        what = f"is not in {root} (nor images_001/images …)"
        problems.add("images/", what, "put the PNG files there")
    files: dict[str, Path] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            if name in files:
                fix = "keep one of the two files"
                problems.add(f"{folder.relative_to(root)}/", "has a file that lies elsewhere too",
                             fix, f"{name} (also {files[name]})")  # fmt: skip
            files.setdefault(name, folder / name)
    return files


class PngFolder:
    """A root in NIH's layout as a store of pictures; `files` maps each existing file's name to its path."""

    def __init__(self, root: Path, files: dict[str, Path]) -> None:
        self.root, self.files = root, files

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def select(self, names: Sequence[str]) -> PngFiles:
        """The pictures of `names`; a missing file gets a path in images/."""
        folder = self.root / "images"
        return PngFiles(tuple(self.files.get(name, folder / name) for name in names))

    def checksums(self, image_size: int | None) -> dict[str, str]:
        """Always empty: hashing the PNG files would mean reading all of them."""
        return {}
