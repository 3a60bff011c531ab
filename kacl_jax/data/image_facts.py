"""Size, bits and grey range of every image file. Finds images and sets that were scaled wrongly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from kacl_jax.data.problems import Problems
from kacl_jax.images.reader import Grey8

NEARLY_BLACK_LEVEL = 16  # of 255; a 12-bit image in a 16-bit file has grey values up to 15
_MIN_IMAGES = 5  # fewer may all be dark
_ROWS = 128  # evenly over the image: enough for a percentile, and a quarter of the time
_BRIGHT = 0.95  # of the pixels; text that is burned into a film covers less than the rest


class ImageFacts(NamedTuple):
    """width, height: of the file. bits: 8 or 16, as stored. The others are grey levels after scaling to 8 bits.

    low, high: 5th and 95th percentile of the pixels in about `_ROWS` rows.
    """

    width: int
    height: int
    bits: int
    darkest: int
    low: int
    high: int
    brightest: int

    @property
    def is_constant(self) -> bool:
        return self.darkest == self.brightest

    @property
    def is_nearly_black(self) -> bool:
        """Whether the grey range is so narrow that the file was scaled wrongly: 12 bits in 16."""
        return not self.is_constant and self.high <= NEARLY_BLACK_LEVEL


def image_facts(image: Grey8) -> ImageFacts:
    """From a decoded file."""
    pixels, bits = image
    height, width = pixels.shape
    some = np.ascontiguousarray(pixels[:: max(1, height // _ROWS)])
    counts = cv2.calcHist([some], [0], None, [256], [0, 256]).ravel()
    share = np.cumsum(counts, dtype=np.float64) / some.size
    low, high = np.searchsorted(share, [1 - _BRIGHT, _BRIGHT])
    return ImageFacts(
        width, height, bits, int(pixels.min()), int(low), int(high), int(pixels.max())
    )


def check_grey(facts: Mapping[str, ImageFacts], problems: Problems) -> None:
    """Reports images without a range of grey values, and a set that uses only a part of its bits."""
    for name, one in facts.items():
        if one.is_nearly_black:
            what = f"a file is nearly black, 95 % of it at or below {NEARLY_BLACK_LEVEL} of 255"
            problems.add("images/", what, _SCALE, f"{name} up to {one.high}")
    constant = [name for name, one in facts.items() if one.is_constant]
    if 2 * len(constant) > len(facts):
        what = f"{len(constant)} of {len(facts)} images have one grey value only"
        problems.add("images/", what, "export the pictures again", ", ".join(constant[:3]))
    for bits in (8, 16):
        _check_range(bits, [one for one in facts.values() if one.bits == bits], problems)


_SCALE = "scale the grey values to the whole range: 0–255 in 8 bits, 0–65535 in 16 bits"


def _check_range(bits: int, facts: list[ImageFacts], problems: Problems) -> None:
    """A set of films has bright ones. If none reaches the upper half, the values have fewer bits than the files."""
    varied = [one for one in facts if not one.is_constant and not one.is_nearly_black]
    if len(varied) < _MIN_IMAGES:
        return
    top = int(np.percentile([one.high for one in varied], 95))
    if top < 128:
        what = (
            f"{len(varied)} images of {bits} bits use at most 1/{round(255 / max(top, 1))} of the grey range "
            f"(95 % of the pixels are at or below {top} of 255)"
        )
        problems.add("images/", what, _SCALE)


def summarise(facts: Mapping[str, ImageFacts]) -> dict[str, Any]:
    """Counts for a person, JSON-able."""
    summary: dict[str, Any] = {
        "sizes": dict(Counter(f"{one.width}x{one.height}" for one in facts.values())),
        "constant_images": sum(one.is_constant for one in facts.values()),
    }
    for bits in (8, 16):
        group = [one for one in facts.values() if one.bits == bits]
        if group:
            low, high = np.median([[one.low, one.high] for one in group], 0)
            summary[f"grey_range_of_{bits}_bit_images"] = (
                f"{low:g} to {high:g} of 255 (medians of the 5th and 95th percentile of {len(group):,} images)"
            )
    return summary
