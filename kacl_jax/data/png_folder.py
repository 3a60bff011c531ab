"""The pictures of a data root in NIH's layout: one image file per image, in images/ or images_001/images …"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kacl_jax.data.tables import BOX_FILE, NIH_SIDE, Problems, RootCheck, Tables
from kacl_jax.images.reader import (
    FILE_ENDINGS,
    MAX_MEGAPIXELS,
    NEARLY_BLACK_LEVEL,
    BrokenImage,
    is_nearly_black,
    read_image,
)
from kacl_jax.images.resizing import resize

_MIN_BOXES = 20  # so many boxes do not all lie in one corner by chance


@dataclass(frozen=True)
class PngFiles:
    """One file per image, as in NIH's set a PNG file; every `read` decodes the file again."""

    paths: tuple[Path, ...]
    max_megapixels: int = MAX_MEGAPIXELS

    def read(self, image_id: int | np.integer, size: int) -> np.ndarray:
        return resize(read_image(self.paths[image_id], self.max_megapixels), size)


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

    def select(self, names: Sequence[str]) -> PngFiles:
        """The pictures of `names`; a missing file gets a path in images/."""
        folder = self.root / "images"
        paths = tuple(self.files.get(name, folder / name) for name in names)
        return PngFiles(paths, self.max_megapixels)

    def checksums(self, image_size: int | None) -> dict[str, str]:
        """Always empty: hashing the files would mean reading all of them."""
        return {}

    def verify(self, check: RootCheck) -> dict[str, Any]:
        """See `ImageStore.verify`. Decodes the files of all label rows; if there is no label row, all image files."""
        rows = check.tables.rows
        names = rows if rows else [f for f in self.files if f.lower().endswith(FILE_ENDINGS)]
        paths = [self.files[name] for name in sorted(names) if name in self.files]
        counts = {
            "files": len(self.files),
            "files_without_label_row": len(set(self.files) - set(rows)),
        }
        summary = counts | _decode_images(paths, self.max_megapixels, check)
        _check_box_frame(check.tables, summary["sizes"], check.problems)
        return summary


def _image_folders(root: Path) -> list[Path]:
    folders = [root / "images", *sorted(root.glob("images_[0-9][0-9][0-9]/images"))]
    return [folder for folder in folders if folder.is_dir()]


def _find_files(root: Path, problems: Problems) -> dict[str, Path]:
    """File name → path of all files in the image folders."""
    files: dict[str, Path] = {}
    for folder in _image_folders(root):
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            if name in files:
                fix = "keep one of the two files"
                problems.add(f"{folder.relative_to(root)}/", "has a file that lies elsewhere too",
                             fix, f"{name} (also {files[name]})")  # fmt: skip
            files.setdefault(name, folder / name)
    return files


def report_broken(error: BrokenImage, problems: Problems) -> None:
    """Adds the Problem of a file that cannot be read."""
    fix = "fetch the file again, or leave it out with --config.data.on_error=skip"
    problems.add("images/", "a file cannot be read", fix, f"{error.path.name} {error.reason}")


def _decode_images(paths: list[Path], max_megapixels: int, check: RootCheck) -> dict[str, Any]:
    shapes: Counter[str] = Counter()
    constant = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decode = partial(_decode_image, max_megapixels=max_megapixels)
        outcomes = zip(paths, pool.map(decode, paths), strict=True)
        for done, (path, outcome) in enumerate(outcomes, 1):
            if isinstance(outcome, BrokenImage):
                report_broken(outcome, check.broken_file_problems)
            else:
                shapes["{1}x{0}".format(*outcome.shape)] += 1
                constant += outcome.darkest == outcome.brightest
                if is_nearly_black(outcome.darkest, outcome.brightest):
                    _report_dark(path, outcome.brightest, check.problems)
            if check.progress is not None:
                check.progress(done, len(paths))
    return {"decoded": sum(shapes.values()), "sizes": dict(shapes), "constant_images": constant}


class _ImageInfo(NamedTuple):
    shape: tuple[int, int]  # h, w
    darkest: int
    brightest: int


def _decode_image(path: Path, max_megapixels: int) -> _ImageInfo | BrokenImage:
    """Size and range of grey values of an image, or the error why it cannot be read."""
    try:
        image = read_image(path, max_megapixels)
    except BrokenImage as error:
        return error
    return _ImageInfo((image.shape[0], image.shape[1]), int(image.min()), int(image.max()))


def _report_dark(path: Path, brightest: int, problems: Problems) -> None:
    fix = (
        "scale its grey values to 0–255, or in a 16-bit file to 0–65535 (12 bits in 16 are 0–4095)"
    )
    what = f"a file is nearly black, no grey value above {NEARLY_BLACK_LEVEL} of 255"
    problems.add("images/", what, fix, f"{path.name} up to {brightest}")


def _check_box_frame(tables: Tables, sizes: dict[str, int], problems: Problems) -> None:
    """Reports boxes that are in pixels of smaller images, not of NIH's frame: all end in its upper left part."""
    sides = [max(map(int, size.split("x"))) for size in sizes]
    ends = [max(x + w, y + h) for x, y, w, h in tables.boxes.values()]
    if len(ends) >= _MIN_BOXES and sides and max(ends) <= max(sides) < NIH_SIDE:
        what = f"all boxes end within {max(sides)} px, as if they were in pixels of the images"
        fix = f"give them in NIH's frame: x and w times {NIH_SIDE} by the image's width, y and h by its height"
        problems.add(BOX_FILE, what, fix)
