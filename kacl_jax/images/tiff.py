"""TIFF files with one picture (TIFF 6.0)."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL.TiffImagePlugin import TiffImageFile

from kacl_jax.images.picture import Header, Kind, Unreadable
from kacl_jax.images.tiff_fields import read_directory

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _PLANES = 256, 257, 258, 259, 262, 277
_ROWS_PER_STRIP, _PLANES_APART = 278, 284
_PLACES = ((273, 279), (324, 325))  # offsets and lengths, of strips or of tiles
_UNCOMPRESSED, _WHITE_IS_ZERO = 1, 0
_LOSSY = {6, 7, 34892, 33003, 33005, 34712}  # JPEG and JPEG 2000, which may be lossy
_COLOUR_MODES = {"RGB": "RGB", "P": "RGB", "PA": "RGBA", "LA": "RGBA", "RGBA": "RGBA"}
_GREY_MODES = ("1", "L", "I;16", "I;16B", "I", "F")


def _header(data: bytes) -> Header:
    """Pillow turns the picture itself, so nothing is left to be turned."""
    fields, has_next = read_directory(data)
    if has_next:
        raise Unreadable("holds more than one picture")
    if not (fields.get(_WIDTH) and fields.get(_HEIGHT)):
        raise Unreadable("is damaged (it does not say its size)")
    height, width = fields[_HEIGHT][0], fields[_WIDTH][0]
    bits, planes = max(fields.get(_BITS, (1,))), fields.get(_PLANES, (1,))[0]
    if planes > 2 and bits > 8:
        raise Unreadable(f"has colours of {bits} bits; save it in grey")
    if fields.get(_COLOURS) == (_WHITE_IS_ZERO,) and bits > 1:
        raise Unreadable("counts grey from white (WhiteIsZero); save it with 0 for black")
    rows = fields.get(_ROWS_PER_STRIP, (height,))[0]
    bands = planes if fields.get(_PLANES_APART) == (2,) else 1
    strips = len(fields.get(_PLACES[0][0], ()))
    if strips and (rows == 0 or strips != -(-height // rows) * bands):
        raise Unreadable("is damaged (its height and the number of its strips disagree)")
    compression = fields.get(_COMPRESSION, (_UNCOMPRESSED,))[0]
    places = [(fields[o], fields[n]) for o, n in _PLACES if o in fields and n in fields]
    stored = 0
    for offset, length in (pair for place in places for pair in zip(*place, strict=False)):
        stored += length
        if offset + length > len(data):
            raise Unreadable("is truncated")
    if compression == _UNCOMPRESSED and stored < height * math.ceil(width * planes * bits / 8):
        raise Unreadable("is truncated (it has fewer bytes than pixels)")
    return Header(height, width, lossy=compression in _LOSSY)


def _decode(data: bytes) -> np.ndarray:
    """The pixels, by Pillow. cv2 goes on where a compressed strip is damaged."""
    try:
        with TiffImageFile(io.BytesIO(data)) as image:
            mode = image.mode
            pixels = np.asarray(image.convert(_COLOUR_MODES.get(mode, mode)))
    except Exception as error:  # Pillow does not say which ones damaged files raise
        raise Unreadable(f"cannot be decoded ({error})") from error
    if mode not in _GREY_MODES and mode not in _COLOUR_MODES:
        raise Unreadable(f"has {mode} colours")
    if pixels.dtype == np.bool_:
        return pixels * np.uint8(255)
    return pixels.astype(pixels.dtype.newbyteorder("="))


KIND = Kind(lambda data: data.startswith((b"II*\0", b"MM\0*")), _header, _decode)
