"""Finds the file that a table means by a name."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from kacl_jax.data.image_names import Spellings, difference
from kacl_jax.data.problems import Problems
from kacl_jax.images.reader import FILE_ENDINGS
from kacl_jax.runtime.errors import UserError

_ENDINGS = (*FILE_ENDINGS, ".dcm", ".dicom")


def is_file(path: Path) -> bool:
    """Whether a regular file is there; a path that cannot exist, as with a name of 300 letters, is no file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class ImageFolder:
    """A folder of images with its sub folders. without_ending: names that the table writes without their ending."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--images={folder} is no folder; give the folder of the image files")
        self.folder = folder.absolute()
        self.without_ending: set[str] = set()
        self._found: dict[str, Path] = {}

    @cached_property
    def _paths(self) -> dict[str, list[Path]]:
        """Bare name → the files of that name, in the folder and below."""
        paths: dict[str, list[Path]] = {}
        for folder, folders, names in os.walk(self.folder):
            folders.sort()
            for name in sorted(names):
                paths.setdefault(name, []).append(Path(folder, name))
        return paths

    @cached_property
    def _spellings(self) -> Spellings:
        return Spellings(self._paths)

    def find(self, name: str, file: str, where: str, problems: Problems) -> Path | None:
        """The file of a path below the folder, or of a bare name that only one file has; None with a Problem.

        A name without its ending is understood if only one file has this name with an ending of an image.
        """
        if name not in self._found:
            path = self._find(name, file, where, problems)
            if path is None:
                return None
            self._found[name] = path
        return self._found[name]

    def _files(self, name: str) -> list[Path]:
        return [path for path in self._paths.get(name, []) if is_file(path)]

    def _find(self, name: str, file: str, where: str, problems: Problems) -> Path | None:
        path = self.folder / name.replace("\\", "/")
        if is_file(path):
            return path
        named = self._files(name)
        if not named:
            named = [path for ending in _ENDINGS for path in self._files(name + ending)]
            if len(named) == 1:
                self.without_ending.add(name)
        if len(named) == 1:
            return named[0]
        if named:
            fix = "write its path below --images, or give another folder by --images"
            example = f"{where}: {named[0]} and {named[1]}"
            problems.add(file, "names an image that several files could be", fix, example)
            return None
        meant = self._spellings.meant(name)
        if meant is None:
            fix = f"give the folder of the images by --images; now it is {self.folder}"
            problems.add(file, "names an image that does not exist", fix, where)
        else:
            what = f"writes an image name {difference(name, meant)}"
            problems.add(file, what, "write each name as the file has it", f"{where}: {meant}")
        return None
