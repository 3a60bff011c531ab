"""The pictures of a data root in NIH's layout: one image file per image, in images/ or images_001/images …"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.data.image_facts import ImageFacts, check_grey, image_facts, summarise
from kacl_jax.data.problems import Problems
from kacl_jax.data.tables import CHECK_SIDE, RootCheck
from kacl_jax.images.reader import (
    FILE_ENDINGS,
    MAX_MEGAPIXELS,
    BrokenImage,
    read_grey8,
    read_image,
    read_size,
)
from kacl_jax.images.resizing import resize, shrink


@dataclass(frozen=True)
class PngFiles:
    """One file per image, as in NIH's set a PNG file; every `read` decodes the file again."""

    paths: tuple[Path, ...]
    max_megapixels: int = MAX_MEGAPIXELS

    def read(self, image_id: int | np.integer, size: int) -> np.ndarray:
        return resize(read_image(self.paths[image_id], self.max_megapixels), size)

    def read_shrunk(self, image_id: int | np.integer, longest: int) -> np.ndarray:
        return shrink(read_image(self.paths[image_id], self.max_megapixels), longest)


def has_png_folder(root: Path) -> bool:
    """Whether `root` has a folder where NIH's images are."""
    return bool(_image_folders(root))


class PngFolder:
    """A root in NIH's layout as a store of pictures; `files` maps each existing file's name to its path."""

    def __init__(
        self, root: Path, files: dict[str, Path], max_megapixels: int = MAX_MEGAPIXELS
    ) -> None:
        self.root, self.files, self.max_megapixels = root, files, max_megapixels

    @classmethod
    def open(cls, root: Path, problems: Problems, max_megapixels: int) -> PngFolder:
        """Finds the files. Calls scandir once per folder and no stat per file."""
        return cls(root, _find_files(root, problems), max_megapixels)

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def size(self, name: str) -> tuple[int, int] | None:
        try:
            return read_size(self.files[name], self.max_megapixels)
        except BrokenImage:
            return None

    def select(self, names: Sequence[str]) -> PngFiles:
        """The pictures of `names`; a missing file gets a path in images/."""
        folder = self.root / "images"
        paths = tuple(self.files.get(name, folder / name) for name in names)
        return PngFiles(paths, self.max_megapixels)

    def checksums(self, image_size: int | None) -> dict[str, str]:
        """Always empty: hashing the files would mean reading all of them."""
        return {}

    def names(self) -> Collection[str]:
        return self.files

    def verify(self, check: RootCheck) -> dict[str, Any]:
        """See `ImageStore.verify`. Decodes the files of all label rows; if there is no label row, all image files."""
        rows = check.tables.rows
        names = rows if rows else [f for f in self.files if f.lower().endswith(FILE_ENDINGS)]
        paths = [self.files[name] for name in sorted(names) if name in self.files]
        facts = _decode_images(paths, self.max_megapixels, check)
        check_grey(facts, check.problems)
        check.sizes.update((name, (one.width, one.height)) for name, one in facts.items())
        return {
            "files": len(self.files),
            "files_without_label_row": len(set(self.files) - set(rows)),
            "decoded": len(facts),
            **summarise(facts),
        }


def _image_folders(root: Path) -> list[Path]:
    folders = [root / "images", *sorted(root.glob("images_[0-9][0-9][0-9]/images"))]
    return [folder for folder in folders if folder.is_dir()]


def _find_files(root: Path, problems: Problems) -> dict[str, Path]:
    """File name → path of all files in the image folders."""
    files: dict[str, Path] = {}
    for folder in _image_folders(root):
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries]
        except OSError as error:
            what = f"cannot be read ({error.strerror})"
            problems.add(f"{folder.relative_to(root)}/", what, "allow this user to read the folder")
            continue
        for name in names:
            if name in files:
                fix = "keep one of the two files"
                problems.add(f"{folder.relative_to(root)}/", "has a file that lies elsewhere too",
                             fix, f"{name} (also {files[name]})")  # fmt: skip
            files.setdefault(name, folder / name)
    return files


def report_broken(error: BrokenImage, problems: Problems) -> None:
    """Adds the Problem of a file that cannot be read."""
    fix = (
        "save a file of a wrong kind as the reason says, copy a damaged one again, "
        "or leave such files out with --config.data.on_error=skip"
    )
    problems.add("images/", "a file cannot be read", fix, f"{error.path.name} {error.reason}")


def _decode_images(
    paths: list[Path], max_megapixels: int, check: RootCheck
) -> dict[str, ImageFacts]:
    """Name → facts of the images that can be read; reports the others, and keeps the pictures of the sample."""

    def decode(path: Path) -> ImageFacts | BrokenImage:
        try:
            image = read_grey8(path, max_megapixels)
        except BrokenImage as error:
            return error
        if path.name in check.sample:
            check.pictures[path.name] = resize(image.pixels, CHECK_SIDE)
        return image_facts(image)

    facts: dict[str, ImageFacts] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (path, outcome) in enumerate(zip(paths, pool.map(decode, paths), strict=True), 1):
            if isinstance(outcome, BrokenImage):
                report_broken(outcome, check.broken_file_problems)
            else:
                facts[path.name] = outcome
            if check.progress is not None:
                check.progress(done, len(paths))
    return facts
