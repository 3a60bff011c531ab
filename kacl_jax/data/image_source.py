"""Where the pictures of a data root come from. To read another kind of root, add it to `READERS`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from kacl_jax.data.png_folder import PngFolder, has_png_folder
from kacl_jax.data.prepared.reader import PreparedFolder, is_prepared
from kacl_jax.data.problems import Problems
from kacl_jax.data.tables import RootCheck
from kacl_jax.images.reader import MAX_MEGAPIXELS


class Images(Protocol):
    """The pictures of one Records object, in its order. Safe to use from threads."""

    def read(self, image_id: int | np.integer, size: int) -> np.ndarray:
        """The picture as uint8 [size size], resized by `images.resizing.resize`.

        Raises:
            BrokenImage: this picture cannot be read; other pictures may be fine.
            UserError: the store itself is damaged.
        """
        ...

    def read_shrunk(self, image_id: int | np.integer, longest: int) -> np.ndarray:
        """The stored picture as uint8 [h w] in its own shape, by `images.resizing.shrink`. Raises as `read`."""
        ...


class ImageStore(Protocol):
    """All pictures of a root. `name in store`: whether it has that image, even a broken one."""

    def __contains__(self, name: str) -> bool: ...

    def names(self) -> Collection[str]:
        """Of all its images, even broken ones."""
        ...

    def size(self, name: str) -> tuple[int, int] | None:
        """(width, height) of an image's original file, as it is seen; None where that is not known."""
        ...

    def select(self, names: Sequence[str]) -> Images:
        """The pictures of `names`, in this order."""
        ...

    def checksums(self, image_size: int | None) -> dict[str, str]:
        """Label → sha256 of what makes these pictures, read at `image_size`, other ones than those of NIH's files."""
        ...

    def verify(self, check: RootCheck) -> dict[str, Any]:
        """Reads everything once, reports each mistake, and keeps the sample's pictures (see `RootCheck`).

        Returns counts for a person, JSON-able.
        """
        ...


class Reader(NamedTuple):
    """How to open one kind of root.

    finds: whether a root is of this kind. open: (root, problems, max_megapixels) → its store; adds what is wrong with
    it to problems. A file whose picture has more pixels than max_megapixels · 10^6 counts as broken.
    """

    finds: Callable[[Path], bool]
    open: Callable[[Path, Problems, int], ImageStore]


# The first that finds its kind reads the root.
READERS = {
    "prepared": Reader(is_prepared, lambda root, problems, _: PreparedFolder(root, problems)),
    "png": Reader(has_png_folder, PngFolder.open),
}


def open_image_store(
    root: Path, problems: Problems, max_megapixels: int = MAX_MEGAPIXELS
) -> ImageStore:
    """The store of pictures of a root; adds what is wrong with it to `problems`. max_megapixels: see `Reader`.

    Raises:
        UserError: the root is being prepared and not complete yet.
    """
    for reader in READERS.values():
        if reader.finds(root):
            return reader.open(root, problems, max_megapixels)
    what = f"is not in {root} (nor images_001/images …)"
    problems.add("images/", what, "put the image files there")
    return PngFolder(root, {})
