"""What every kind of image file gives: a header, which is read first, and the pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Unreadable(Exception):
    """These bytes cannot be read as a picture; the message is one clause: 'is truncated'."""


class Header(NamedTuple):
    """What a file says of its picture before any pixel is decoded.

    height, width: pixels as stored. orientation: what `decode` leaves to be turned, as EXIF numbers it, 1 … 8.
    lossy: the compression changes grey values, so that the edges of a mask blur.
    """

    height: int
    width: int
    orientation: int = 1
    lossy: bool = False


class Kind(NamedTuple):
    """One kind of image file.

    matches: whether these bytes begin like one. header: reads and checks the header. decode: the pixels as stored,
    [h w] grey, [h w 3] RGB or [h w 4] RGBA; fewer than 8 bits span 0–255. The last two raise `Unreadable`.
    """

    matches: Callable[[bytes], bool]
    header: Callable[[bytes], Header]
    decode: Callable[[bytes], np.ndarray]
